"""Commands that need no running host: output, messages, exit codes."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from host.cli.main import COMMANDS
from host.config.settings import SETTINGS

Run = Callable[..., Any]
"""The fixture `run`: gives code, out and err."""

ROOT = Path(__file__).parents[3]


@pytest.fixture
def package(run: Run, tmp_path: Path) -> Path:
    """Give a package of the python runtime in ./model_repository."""
    assert run("new", "line", "--runtime", "python").code == 0
    return tmp_path / "model_repository" / "line" / "1"


# -- the program ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_says_the_same_in_the_list(name: str) -> None:
    command = importlib.import_module(COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_help_imports_no_command_and_is_quick() -> None:
    code = (
        "import sys; from host.cli.main import main; main(['--help']); "
        "heavy = {'rich', 'msgspec', 'asyncio', 'aiohttp', 'numpy', 'host.config.settings'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "import time; print(time.process_time(), file=sys.stderr)"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert all(name in done.stdout for name in COMMANDS)
        # Seconds of a CPU, of which it takes 0.07, and more where others spoil its caches or it compiles itself first.
        if (took_s := float(done.stderr)) < 0.5:
            break
    assert took_s < 0.5


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["up", "--nonsense"], ["new", "x"], ["new", "x", "--runtime", "r"], ["logs", "-n", "-1"]],
)
def test_wrong_usage_is_2(run: Run, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Error" in outcome.err


def test_every_problem_of_the_settings_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELHOST_PORT", "99999")
    outcome = run("up", "--fronts", "0")
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        'environment: MODELHOST_PORT: expected a whole number from 1 to 65535, received "99999"',
        'command line: --fronts: expected a whole number from 1 to 64, received "0"',
    ]


# -- config -----------------------------------------------------------------------------------------------
def test_config_shows_each_value_and_where_it_came_from(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modelhost.toml").write_text("fronts = 3\n")
    monkeypatch.setenv("MODELHOST_DRAIN_S", "1.5")
    document = json.loads(run("config", "--json", "--port", "9000").out)
    assert set(document["settings"]) == {setting.name for setting in SETTINGS}
    shown = {name: (row["value"], row["source"], row["from"]) for name, row in document["settings"].items()}
    assert shown["fronts"] == (3, "file", str(tmp_path / "modelhost.toml"))
    assert shown["drain_s"] == (1.5, "environment", "MODELHOST_DRAIN_S")
    assert shown["port"] == (9000, "flag", "--port")
    assert shown["keepalive_s"] == (75, "default", "default")
    table = run("config").out
    assert all(setting.name in table for setting in SETTINGS)
    assert "MODELHOST_DRAIN_S" in table


# -- new and check ----------------------------------------------------------------------------------------
def test_a_new_package_passes_its_check(run: Run, package: Path) -> None:
    for path in (package, package.parent, package.parent.parent, package / "model.toml"):
        outcome = run("check", path)
        assert (outcome.code, outcome.err) == (0, "")
    assert run("check").code == 0


@pytest.mark.parametrize(("runtime", "library"), [("lightgbm", "lightgbm"), ("onnx", "onnx")])
def test_a_new_package_with_an_artifact_passes_its_check(run: Run, tmp_path: Path, runtime: str, library: str) -> None:
    pytest.importorskip(library)
    assert run("new", "m", "--runtime", runtime, "--directory", tmp_path / "r").code == 0
    assert run("check", tmp_path / "r" / "m" / "1").code == 0


def test_new_without_the_library_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'lightgbm'\" >&2\nexit 1\n")
    python.chmod(0o755)
    outcome = run("new", "m", "--runtime", "lightgbm", "--model-python", python)
    assert outcome.code == 1
    assert "No module named 'lightgbm'" in outcome.err
    assert f"{python} {tmp_path}/model_repository/m/1/train.py" in outcome.err


def test_new_overwrites_nothing_and_takes_no_odd_name(run: Run, package: Path) -> None:
    assert run("new", "line", "--runtime", "python").err.startswith(f"{package}: expected nothing there yet")
    for name in ("../up", "stats", "", "a/b", "x" * 65):
        outcome = run("new", name, "--runtime", "python")
        assert (outcome.code, "model name" in outcome.err) == (2, True)


def test_check_says_everything_at_once(run: Run, package: Path, tmp_path: Path) -> None:
    text = (package / "model.toml").read_text()
    (package / "model.toml").write_text(text.replace("threads = 1", "threads = 0").replace("[scale]", "[scael]"))
    (tmp_path / "modelhost.toml").write_text("prot = 1\n")
    (tmp_path / "deployment.toml").write_text('[[models]]\nname = "lien"\n')
    outcome = run("check", package, tmp_path / "modelhost.toml", tmp_path / "nothing")
    assert outcome.code == 2
    for part in ("resources.threads", "scael: unknown key", 'did you mean "port"?', "nothing: expected a package"):
        assert part in outcome.err
    (tmp_path / "modelhost.toml").write_text("port = 9000\n")
    outcome = run("check", tmp_path / "deployment.toml")
    assert (outcome.code, 'received "lien"' in outcome.err) == (2, True)
    document = json.loads(run("check", "--json", package, tmp_path / "modelhost.toml").out)
    assert [(row["kind"], bool(row["problems"])) for row in document["checked"]] == [
        ("package", True),
        ("settings", False),
    ]
    assert not document["ok"]
    assert run("check", "--json", package).code == 2


def test_check_of_everything_up_would_use(run: Run, package: Path, tmp_path: Path) -> None:
    (package / "model.py").unlink()
    outcome = run("check", "--run-dir", "/" + "r" * 200, "--model-python", tmp_path / "none")
    assert outcome.code == 2
    for part in ("model.py", "run_dir: expected a run_dir of at most", "model_python: expected a Python interpreter"):
        assert part in outcome.err


def test_check_of_an_empty_place_shows_the_way(run: Run) -> None:
    outcome = run("check")
    assert outcome.code == 2
    assert "modelhost new my_model --runtime python" in outcome.err


# -- render -----------------------------------------------------------------------------------------------
def test_render_shows_or_writes_the_files(run: Run, package: Path, tmp_path: Path) -> None:
    shown = run("render").out
    assert "[program:line.v1]" in shown
    assert run("render", "--output", tmp_path / "out").out.strip() == str(tmp_path / "out" / "supervisord.conf")
    assert (tmp_path / "out" / "supervisord.conf").read_text() == shown
    (tmp_path / "file").write_text("")
    assert run("render", "--output", tmp_path / "file").code == 2
    assert not (tmp_path / "run").exists()


# -- without a host ---------------------------------------------------------------------------------------
def test_without_a_host(run: Run, tmp_path: Path) -> None:
    outcome = run("down")
    assert (outcome.code, outcome.out) == (0, f"no host runs in {tmp_path}/run\n")
    outcome = run("status")
    assert (outcome.code, outcome.err) == (
        1,
        f"modelhost: no host runs in {tmp_path}/run; start it with: modelhost up\n",
    )
    document = json.loads(run("status", "--json").out)
    assert (document["running"], document["ready"]) == (False, False)
    outcome = run("logs")
    assert (outcome.code, "no log of anything" in outcome.err) == (1, True)


def test_predict_without_a_host_or_a_request(run: Run, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text('{"inputs": []}')
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
        outcome = run("predict", "m", "-i", "request.json", "--port", port)
    assert (outcome.code, f"no host answers on 127.0.0.1 port {port}" in outcome.err) == (1, True)
    for name, text, what in (("none.json", None, "cannot be read"), ("b", "{", "not JSON"), ("c", "[]", '"inputs"')):
        if text is not None:
            (tmp_path / name).write_text(text)
        outcome = run("predict", "m", "-i", name)
        assert (outcome.code, what in outcome.err) == (2, True)


def test_up_says_who_has_the_port(run: Run, package: Path, short: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        outcome = run("up", "--run-dir", short / "run", "--port", str(port))
    assert outcome.code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use by pid " in outcome.err
    assert not list((short / "run").rglob("*.sock"))


def test_up_says_who_has_the_admin_port(run: Run, package: Path, short: Path) -> None:
    with socket.socket() as sock, socket.socket() as free:
        # As long as it is bound and does not listen, nobody else gets it, and it is free for a front.
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for one in (sock, free):
            one.bind(("127.0.0.1", 0))
        sock.listen()
        port, front = sock.getsockname()[1], free.getsockname()[1]
        outcome = run("up", "--run-dir", short / "run", "--port", str(front), "--admin-port", str(port))
    assert outcome.code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: address already in use by pid " in outcome.err
    assert "another one: --admin-port (0: none)" in outcome.err


def test_up_refuses_a_run_dir_that_cannot_be(run: Run, package: Path, short: Path) -> None:
    (short / "file").write_text("")
    outcome = run("up", "--run-dir", short / "file")
    assert (outcome.code, "expected a directory that we can write to" in outcome.err) == (2, True)


# -- logs -------------------------------------------------------------------------------------------------
def test_logs_are_merged_by_time(run: Run, tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "a.v1:0.log").write_text("2026-01-01 00:00:01,000 one\ncontinued\n2026-01-01 00:00:03,000 three\n")
    (logs / "a.v1:1.log").write_text("2026-01-01 00:00:02,000 two\n")
    (logs / "front:0.log").write_text("2026-01-01 00:00:04,000 four\n")
    assert [line.split()[-1] for line in run("logs").out.splitlines()] == ["one", "continued", "two", "three", "four"]
    assert [line.split()[-1] for line in run("logs", "a", "-n", "2").out.splitlines()] == ["two", "three"]
    assert run("logs", "a.v1:1").out == "2026-01-01 00:00:02,000 two\n"
    assert run("logs", "front").out.endswith("four\n")
    assert run("logs", "-n", "0").out == ""
    assert "there are: a.v1:0, a.v1:1, front:0" in run("logs", "b").err


JSON_LOG = """\
{"time":"2026-01-01T00:00:01.000Z","level":"info","process":"a.v1:0","message":"one","request_id":"r1"}
printed
{"time":"2026-01-01T00:00:03.000Z","level":"error","process":"a.v1:0","message":"three","request_id":"r3",\
"exception":"Traceback\\nValueError"}
"""


def test_logs_of_json_are_readable_or_raw(run: Run, tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "a.v1:0.log").write_text(JSON_LOG)
    one, printed, three, *traceback = run("logs", "a").out.splitlines()
    assert one.endswith(",000 INFO a.v1:0 request r1: one")
    assert printed == "printed"
    assert three.endswith(",000 ERROR a.v1:0 request r3: three")
    assert traceback == ["Traceback", "ValueError"]
    raw = run("logs", "a", "--json").out.splitlines()
    assert [raw[0], raw[2]] == [JSON_LOG.splitlines()[0], JSON_LOG.splitlines()[2]]
    assert json.loads(raw[1]) == {
        **{"time": "2026-01-01T00:00:01.000Z", "level": "info", "process": "a.v1:0", "message": "printed"}
    }
    assert len(run("logs", "a", "--level", "error").out.splitlines()) == 3
    assert run("logs", "a", "--request-id", "r1").out.splitlines() == [one]
    assert run("logs", "a", "--request-id", "r").out == ""


def test_logs_are_chosen(run: Run, tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    for name in ("a.v1:0", "a.v1:1", "front:0", "front:1", "control"):
        (logs / f"{name}.log").write_text(f"2026-01-01 00:00:01,000 WARNING {name} request r: {name}\nTraceback\n")
    (logs / "front:0.log.1").write_text("2026-01-01 00:00:00,000 ERROR front:0 requests q, r: old\n")
    assert run("logs", "a", "--slot", "1", "-n", "2").out.splitlines()[0].endswith("a.v1:1")
    assert len(run("logs", "--slot", "1").out.splitlines()) == 4
    assert run("logs", "--level", "error").out.split(" | ")[1].endswith("old\n")
    assert len(run("logs", "--request-id", "r").out.splitlines()) == 11
    assert len(run("logs", "front", "--request-id", "q").out.splitlines()) == 1
    for name, guess in (("aa", "a"), ("fronts", "front"), ("a.v2", "a.v1"), ("contrlo", "control")):
        assert f'did you mean "{guess}"' in run("logs", name).err
    assert "no log of slot 2 of a; there are: a.v1:0, a.v1:1" in run("logs", "a", "--slot", "2").err
    assert run("logs", "--level", "loud").code == 2
