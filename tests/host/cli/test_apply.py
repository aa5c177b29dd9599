"""`modelhost apply` where no host runs, and what it says of what it refuses."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host.cli.apply import TEXT_MAX_BYTES
from host.cli.preflight import RunLock, prepare_run_dir
from host.config.run_dir import RunDirectory

Run = Callable[..., Any]
"""The fixture `run`: gives code, out and err."""

TEXT = '[[models]]\nname = "line"\nversion = "1"\nprocesses = 2\n'


@pytest.fixture
def file(run: Run, tmp_path: Path) -> Path:
    """Give the path of a deployment file that is not there yet, beside a repository with one model."""
    assert run("new", "line", "--runtime", "python").code == 0
    return tmp_path / "deployment.toml"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Give a way to say what stands on standard input."""

    def give(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


Given = Callable[[bytes], None]


def document(outcome: Any) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(outcome.out)
    assert outcome.err == ""
    return told


def test_a_host_that_does_not_run_gets_the_file_if_that_is_allowed(run: Run, file: Path, given: Given) -> None:
    given(TEXT.encode())
    refused = run("apply", "-")
    assert (refused.code, file.exists()) == (1, False)
    assert "no host runs in" in refused.err
    given(TEXT.encode())
    foretold = document(run("apply", "-", "--allow-stopped", "--dry-run", "--json"))
    assert not file.exists()
    given(TEXT.encode())
    told = document(run("apply", "-", "--allow-stopped", "--json"))
    assert told == foretold
    assert (told["running"], told["changed"], told["written"], told["converged"]) == (False, True, True, None)
    assert (told["file"], told["previous"], told["models"]) == (str(file), None, [])
    assert told["differences"] == ["line: version 1 added (2 processes, 512 MiB each)"]
    assert file.read_text() == TEXT
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert sorted(path.name for path in file.parent.iterdir()) == ["deployment.toml", "model_repository"]


def test_what_it_held_is_told_and_its_mode_stays(run: Run, file: Path, given: Given) -> None:
    file.write_text(TEXT)
    file.chmod(0o600)
    given(TEXT.encode())
    same = document(run("apply", "-", "--allow-stopped", "--json"))
    assert (same["changed"], same["written"], same["previous"], same["differences"]) == (False, False, TEXT, [])
    other = TEXT.replace("2", "3")
    given(other.encode())
    outcome = run("apply", "-", "--allow-stopped")
    assert outcome.out == "line: processes 2 -> 3\nno host runs; this is what modelhost up will run\n"
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (other, 0o600)
    given(f"# why\n{other}".encode())
    comment = document(run("apply", "-", "--allow-stopped", "--json"))
    assert (comment["changed"], comment["written"], comment["differences"]) == (True, True, [])


@pytest.mark.parametrize("held", [b"[[models", b"\xff\xfe", b'[[models]]\nname = "gone"\n'])
def test_what_was_wrong_is_no_reason_against_what_is_right(run: Run, file: Path, given: Given, held: bytes) -> None:
    file.write_bytes(held)
    given(TEXT.encode())
    told = document(run("apply", "-", "--allow-stopped", "--json"))
    assert (told["written"], told["previous"]) == (True, held.decode(errors="replace"))
    assert file.read_text() == TEXT


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[[models", "not TOML"),
        (b"", "at least one [[models]] with a name"),
        (b'[[models]]\nname = "line"\nversion = "9"\n', "9"),
        (b'[[models]]\nname = "line"\nmemory = "900TiB"\n', "900"),
        (b"\xff", "cannot be read"),
        (b"#" * (TEXT_MAX_BYTES + 1), f"at most {TEXT_MAX_BYTES} bytes"),
    ],
)
def test_what_is_refused_changes_nothing_and_is_a_document(
    run: Run, file: Path, given: Given, text: bytes, problem: str
) -> None:
    file.write_text(TEXT)
    given(text)
    outcome = run("apply", "-", "--allow-stopped", "--json")
    told = document(outcome)
    assert (outcome.code, told["changed"], told["written"], told["error"]) == (2, False, False, "")
    assert problem in "\n".join(told["problems"])
    assert file.read_text() == TEXT
    given(text)
    spoken = run("apply", "-", "--allow-stopped")
    assert (spoken.code, spoken.out) == (2, "")
    assert spoken.err.splitlines() == told["problems"]


def test_a_file_of_the_largest_size_is_read(run: Run, file: Path, given: Given) -> None:
    text = TEXT.encode()
    given(text + b"#" * (TEXT_MAX_BYTES - len(text)))
    assert run("apply", "-", "--allow-stopped", "--json").code == 0
    assert file.stat().st_size == TEXT_MAX_BYTES


def test_without_a_host_an_error_is_a_document_too(run: Run, file: Path) -> None:
    outcome = run("apply", "--json")
    told = document(outcome)
    assert (outcome.code, told["running"], told["problems"]) == (1, False, [])
    assert "no host runs in" in told["error"]
    # Without FILE there is nothing to write.
    assert run("apply", "--allow-stopped").code == 1
    assert run("apply", "none.toml", "--allow-stopped").code == 2
    assert not file.exists()


def test_a_host_that_is_just_starting_gets_no_file_behind_its_back(run: Run, file: Path, short: Path) -> None:
    run_dir = RunDirectory(short / "run")
    prepare_run_dir(run_dir)
    (file.parent / "new.toml").write_text(TEXT)
    with RunLock(run_dir):
        outcome = run("apply", "new.toml", "--allow-stopped", "--json", "--run-dir", run_dir.root)
    assert outcome.code in (1, 2)
    assert not file.exists()


def test_a_host_that_was_started_meanwhile_is_told_with_what_was_written(
    run: Run, file: Path, given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [False, True]
    monkeypatch.setattr("host.cli.apply._is_running", lambda _: answers.pop(0))
    given(TEXT.encode())
    outcome = run("apply", "-", "--allow-stopped", "--json")
    told = document(outcome)
    assert (outcome.code, told["running"], told["changed"], told["written"]) == (1, True, True, True)
    assert "a host was started meanwhile" in told["error"]
    assert (told["file"], file.read_text()) == (str(file), TEXT)
    answers[:] = [False, True]
    given(TEXT.replace("2", "3").encode())
    spoken = run("apply", "-", "--allow-stopped")
    assert (spoken.code, spoken.out) == (1, "")
    assert "a host was started meanwhile" in spoken.err


def test_a_file_that_cannot_be_written_is_named(run: Run, file: Path, given: Given) -> None:
    file.mkdir()
    given(TEXT.encode())
    outcome = run("apply", "-", "--allow-stopped")
    assert outcome.code == 2
    assert f"{file}: cannot be " in outcome.err


@pytest.mark.parametrize("timeout", ["0", "-1", "x"])
def test_a_timeout_is_a_number_above_0(run: Run, timeout: str) -> None:
    assert run("apply", "--wait", "--timeout", timeout).code == 2
