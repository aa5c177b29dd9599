"""`deployment.toml`: read into entries, changed in place, written anew."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.deployment_file import Entry, entries_text, read_entries, with_changes, write_deployment_file
from host.protocol.errors import ConfigError

MIB = 1 << 20


def read(path: Path, text: str) -> tuple[list[Entry], list[str]]:
    """Read a file with this text; the problems without its name."""
    file = path / "deployment.toml"
    file.write_text(text)
    problems: list[str] = []
    entries = read_entries(file, problems)
    return entries, [problem.removeprefix(f"{file}: ") for problem in problems]


def entry(path: Path, **keys: Any) -> Entry:
    return Entry(where=f"{path / 'deployment.toml'}: models[0]", **keys)


# -- reading --------------------------------------------------------------------------------------------------
def test_an_entry_says_only_what_it_has_to(tmp_path: Path) -> None:
    assert read(tmp_path, '[[models]]\nname = "churn"') == ([entry(tmp_path, name="churn")], [])


def test_bounds_are_read(tmp_path: Path) -> None:
    text = '[[models]]\nname = "churn"\nmin_processes = 0\nmax_processes = 4'
    assert read(tmp_path, text) == ([entry(tmp_path, name="churn", min_processes=0, max_processes=4)], [])


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
    [[models]]
    name = "churn"
    version = "3"
    processes = 2
    max_processes = 4
    default = true
    memory = "512MiB"
    cpus = "2-3"
    threads = 8
    """
    assert read(tmp_path, text) == (
        [
            entry(
                tmp_path, name="churn", version="3", processes=2, max_processes=4, default=True,
                memory_bytes=512 * MIB, cpus="2-3", threads=8,
            )
        ],
        [],
    )  # fmt: skip


def test_entries_keep_their_order_and_know_their_place(tmp_path: Path) -> None:
    entries, problems = read(tmp_path, '[[models]]\nname = "b"\n[[models]]\nname = "a"\nversion = "1"\n')
    assert problems == []
    assert [(one.name, one.version, one.where.rpartition(" ")[2]) for one in entries] == [
        ("b", None, "models[0]"),
        ("a", "1", "models[1]"),
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("version = 3", "models[0].version: expected a string, received 3"),
        ("processes = 0", "models[0].processes: expected a whole number >= 1 and <= 256, received 0"),
        ("processes = 257", "models[0].processes: expected a whole number >= 1 and <= 256, received 257"),
        ("processes = -1", "models[0].processes: expected a whole number >= 1 and <= 256, received -1"),
        ("processes = true", "models[0].processes: expected a whole number >= 1 and <= 256, received true"),
        ("processes = 2.0", "models[0].processes: expected a whole number >= 1 and <= 256, received 2.0"),
        ('processes = "2"', 'models[0].processes: expected a whole number >= 1 and <= 256, received "2"'),
        ("max_processes = 0", "models[0].max_processes: expected a whole number >= 1 and <= 256, received 0"),
        ("max_processes = 257", "models[0].max_processes: expected a whole number >= 1 and <= 256, received 257"),
        ("max_processes = []", "models[0].max_processes: expected a whole number >= 1 and <= 256, received []"),
        ("processes = 3\nmax_processes = 2", "models[0].processes: expected at most max_processes (2), received 3"),
        ("default = 1", "models[0].default: expected true or false, received 1"),
        ('default = "yes"', 'models[0].default: expected true or false, received "yes"'),
        ("memory = 0", 'models[0].memory: expected a size such as "512MiB", received 0'),
        ('memory = "0MiB"', 'models[0].memory: expected a size such as "512MiB", received "0MiB"'),
        ('memory = "512MB"', 'models[0].memory: expected a size such as "512MiB", received "512MB"'),
        ("memory = 1.5", 'models[0].memory: expected a size such as "512MiB", received 1.5'),
        ("memory = true", 'models[0].memory: expected a size such as "512MiB", received true'),
        ("cpus = 0", 'models[0].cpus: expected a number of CPUs >= 1, or a set such as "2-3", received 0'),
        ("cpus = true", 'models[0].cpus: expected a number of CPUs >= 1, or a set such as "2-3", received true'),
        ('cpus = "a"', 'models[0].cpus: expected a number of CPUs >= 1, or a set such as "2-3", received "a"'),
        ("threads = 0", "models[0].threads: expected a whole number >= 1 and <= 256, received 0"),
        ("threads = 257", "models[0].threads: expected a whole number >= 1 and <= 256, received 257"),
        ("judge = {window_s = 5}", "models[0].judge: expected it with canary_percent, received it alone"),
        (
            "canary_percent = 5\njudge = {}",
            "models[0].judge.window_s: expected a whole number >= 1 and <= 86400, received nothing",
        ),
        (
            "canary_percent = 5\njudge = {window_s = 0}",
            "models[0].judge.window_s: expected a whole number >= 1 and <= 86400, received 0",
        ),
        (
            "canary_percent = 5\njudge = {window_s = 9, max_slowdown = -1}",
            "models[0].judge.max_slowdown: expected a number from 0 to 1000, received -1",
        ),
        (
            "process = 2",
            "models[0].process: unknown key; expected one of name, version, processes, min_processes, max_processes, "
            "default, memory, cpus, threads, canary_percent, shadow_percent, shadow_tolerance, judge, sticky_header",
        ),
    ],
)
def test_every_wrong_value_is_named(tmp_path: Path, line: str, problem: str) -> None:
    assert read(tmp_path, f'[[models]]\nname = "churn"\n{line}\n')[1] == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[models]]", "models[0].name: expected a string, received nothing"),
        ("[[models]]\nname = 1", "models[0].name: expected a string, received 1"),
        ("", "models: expected at least one [[models]] with a name, or models = [] for none"),
        ("[[models]]\nname = ''", "models: expected at least one [[models]] with a name, or models = [] for none"),
        ("models = 1", "models: expected tables: [[models]], received 1"),
        ('models = ["a"]', "models: expected tables: [[models]], received ['a']"),
        ('[models]\nname = "a"', "models: expected tables: [[models]], received {'name': 'a'}"),
        ('[[model]]\nname = "a"', "model: unknown key; expected one of models"),
    ],
)
def test_a_file_without_a_model_is_named(tmp_path: Path, text: str, problem: str) -> None:
    assert read(tmp_path, text) == ([], [problem])


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = 'x = 1\n[[models]]\nname = "a"\nprocesses = 0\nthreads = 0\n[[models]]\n[[models]]\nname = "b"\ny = 1\n'
    entries, problems = read(tmp_path, text)
    assert [one.name for one in entries] == ["a", "b"]
    assert [problem.partition(":")[0] for problem in problems] == [
        "models[0].processes",
        "models[0].threads",
        "models[1].name",
        "models[2].y",
        "x",
    ]


@pytest.mark.parametrize(("processes", "good"), [(3, True), (4, True), (5, False)])
def test_processes_up_to_their_maximum(tmp_path: Path, processes: int, good: bool) -> None:
    _, problems = read(tmp_path, f'[[models]]\nname = "a"\nprocesses = {processes}\nmax_processes = 4\n')
    assert (problems == []) is good


def test_what_is_no_toml_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deployment\.toml"):
        read(tmp_path, "[[models]")
    with pytest.raises(ConfigError, match="expected a file, found none"):
        read_entries(tmp_path / "no.toml", [])


# -- changing -------------------------------------------------------------------------------------------------
WRITTEN = """\
# What runs here; ask Ada before you change it.

[[models]]
  name = "churn"   # the old one
  version = "2"
  processes = 1  # one is enough
  default = false

[[models]] # the new one
name = "churn"
version = '3'
processes    =    2
memory = "512MiB"

# Fraud has no version: the highest.
[[models]]
name = "fraud"
cpus = 2
"""


@given(processes=st.integers(1, 256))
def test_a_change_touches_one_value_and_nothing_else(processes: int) -> None:
    changed = with_changes(WRITTEN, "churn", {"processes": processes}, ("2", None))
    assert changed == WRITTEN.replace("processes = 1  # one", f"processes = {processes}  # one")
    changed = with_changes(WRITTEN, "churn", {"processes": processes}, ("3", None))
    assert changed == WRITTEN.replace("processes    =    2", f"processes    =    {processes}")


@given(processes=st.integers(1, 256), version=st.text(st.characters(codec="utf-8", exclude_categories=["C"])))
def test_keys_that_were_not_there_are_added(processes: int, version: str) -> None:
    changed = with_changes(WRITTEN, "fraud", {"processes": processes, "version": version}, ("7", None))
    assert changed.startswith(WRITTEN)
    before, after = tomllib.loads(WRITTEN), tomllib.loads(changed)
    assert after["models"][2] == before["models"][2] | {"processes": processes, "version": version}
    assert after["models"][:2] == before["models"][:2]


def test_a_key_that_is_added_stands_with_its_entry() -> None:
    text = '[[models]]\nname = "a"\n\n# This is about b.\n[[models]]\nname = "b"\n'
    changed = with_changes(text, "a", {"processes": 2}, (None,))
    assert changed == '[[models]]\nname = "a"\nprocesses = 2\n\n# This is about b.\n[[models]]\nname = "b"\n'


def test_every_change_can_be_taken_back() -> None:
    once = with_changes(WRITTEN, "churn", {"version": "4"}, ("3", None))
    assert with_changes(once, "churn", {"version": "3"}, ("4", None)) == WRITTEN.replace("'3'", '"3"')


def test_entries_may_be_written_in_one_line() -> None:
    text = 'models = [{name = "a"}, {name = "b", processes = 1}] # all\n'
    assert with_changes(text, "b", {"processes": 2}, (None,)) == text.replace("1}", "2}")


@pytest.mark.parametrize(("name", "versions"), [("churn", ("9", None)), ("nobody", (None,)), ("fraud", ("1",))])
def test_an_entry_that_is_not_there_is_named(name: str, versions: tuple[str | None, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"expected a \[\[models\]\] with the name {name} in the deployment file"):
        with_changes(WRITTEN, name, {"processes": 2}, versions)


def test_a_text_that_is_no_toml_is_named() -> None:
    with pytest.raises(ConfigError, match="the deployment file cannot be changed: "):
        with_changes("[[models]", "churn", {"processes": 2}, (None,))


@pytest.mark.parametrize("text", ["models = 3\n", 'models = ["churn"]\n', '[models]\nname = "churn"\n', "x = 1\n"])
def test_models_that_are_no_tables_are_named(text: str) -> None:
    with pytest.raises(ConfigError):
        with_changes(text, "churn", {"processes": 2}, (None,))


# -- writing --------------------------------------------------------------------------------------------------
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)
ENTRIES = st.fixed_dictionaries(
    {"name": TEXTS},
    optional={
        "version": TEXTS,
        "processes": st.integers(1, 256),
        "default": st.booleans(),
        "memory": st.integers(1, 1 << 40),
        "cpus": st.integers(1, 64),
        "threads": st.integers(1, 256),
    },
)


@given(entries=st.lists(ENTRIES, min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.toml"
    path.write_text(entries_text(entries), "utf-8")
    problems: list[str] = []
    found = read_entries(path, problems)
    assert problems == []
    keys = ("name", "version", "processes", "default", "cpus", "threads")
    assert [[getattr(one, key) for key in keys] for one in found] == [[one.get(key) for key in keys] for one in entries]
    assert [one.memory_bytes for one in found] == [one.get("memory") for one in entries]


def test_a_written_file_says_what_to_do_with_it() -> None:
    text = entries_text([{"name": "a", "version": "1", "processes": 2}, {"name": "b"}])
    assert text.splitlines()[0] == "# What runs on this host. Change it, then: modelhost apply"
    assert text.count("[[models]]") == 2


@pytest.fixture
def usual_umask() -> Iterator[None]:
    """Take away what a shell usually does."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o666])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "deployment.toml"
    path.write_text("old")
    path.chmod(mode)
    write_deployment_file(path, "new")
    assert path.read_text() == "new"
    assert oct(path.stat().st_mode & 0o777) == oct(mode)


@pytest.mark.usefixtures("usual_umask")
def test_a_new_file_can_be_read_by_everybody(tmp_path: Path) -> None:
    path = tmp_path / "deployment.toml"
    write_deployment_file(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_is_replaced_as_a_whole_where_its_link_points_to(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    target, link = tmp_path / "etc" / "hosts.toml", tmp_path / "deployment.toml"
    target.write_text("old, and longer")
    link.symlink_to(target)
    with target.open() as reader:
        write_deployment_file(link, "new")
        assert reader.read() == "old, and longer"
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["hosts.toml"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "deployment.toml"
    with pytest.raises(ConfigError, match=f"{path}: cannot be written: No such file or directory"):
        write_deployment_file(path, "new")
