"""What runs: found in a repository, or said by a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.config.deployment import (
    DeployedModel,
    Deployment,
    load_deployment,
    natural_key,
    read_deployment,
    socket_path_problems,
    write_deployment,
)
from host.protocol.errors import ConfigError

ENVIRONMENTS = Path("/environments")
TENSORS = """
[[inputs]]
name = "x"
datatype = "FP64"
shape = [-1, 1]
[[outputs]]
name = "y"
datatype = "FP64"
shape = [-1, 1]
"""


def make(repository: Path, name: str, version: str, more: str = "") -> Path:
    package = repository / name / version
    package.mkdir(parents=True)
    (package / "model.toml").write_text('runtime = "python"\n' + TENSORS + more)
    (package / "model.py").write_text("class Model: ...\n")
    return package


def said(repository: Path, text: str) -> Path:
    path = repository.parent / "deployment.toml"
    path.write_text(text)
    return path


def running(deployment: Deployment) -> list[tuple[str, str, int, bool]]:
    return [(model.name, model.version, model.processes, model.default) for model in deployment.models]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def problems_of(repository: Path, file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load_deployment(repository, file, ENVIRONMENTS)
    return list(raised.value.problems)


def test_the_highest_version_of_every_model(repository: Path) -> None:
    for version in ("9", "10", "1"):
        make(repository, "b", version)
    make(repository, "a", "1", "[scale]\nprocesses = 3\n")
    make(repository, "c", "1", "[scale]\nmin = 0\nmax = 4\n")
    for ignored in (".training", "__pycache__"):
        (repository / ignored).mkdir()
    (repository / "README.md").write_text("")
    assert running(load_deployment(repository, None, ENVIRONMENTS)) == [
        ("a", "1", 3, True),
        ("b", "10", 1, True),
        ("c", "1", 0, True),
    ]


def test_versions_compare_naturally() -> None:
    versions = ["1.10", "1.9", "10", "9", "2024-01-02", "1.9.1", "latest"]
    assert sorted(versions, key=natural_key) == ["latest", "1.9", "1.9.1", "1.10", "9", "10", "2024-01-02"]


def test_a_file_says_what_runs(repository: Path) -> None:
    for version in ("1", "2"):
        make(repository, "a", version)
    make(repository, "b", "1", "[scale]\nprocesses = 2\n")
    file = said(
        repository,
        '[[models]]\nname = "b"\n[[models]]\nname = "a"\nversion = "1"\nprocesses = 256\n[[models]]\nname = "a"\n',
    )
    assert running(load_deployment(repository, file, ENVIRONMENTS)) == [
        ("b", "1", 2, True),
        ("a", "1", 256, False),
        ("a", "2", 1, True),
    ]


def test_the_default_is_the_one_that_says_so(repository: Path) -> None:
    for version in ("1", "2", "3"):
        make(repository, "a", version)
    entries = '[[models]]\nname = "a"\nversion = "{}"\n{}\n'
    one = said(repository, entries.format(1, "default = true") + entries.format(2, ""))
    assert running(load_deployment(repository, one, ENVIRONMENTS)) == [("a", "1", 1, True), ("a", "2", 1, False)]
    not_highest = said(repository, entries.format(3, "default = false") + entries.format(2, "") + entries.format(1, ""))
    assert [
        model.version for model in load_deployment(repository, not_highest, ENVIRONMENTS).models if model.default
    ] == ["2"]
    two = said(repository, entries.format(1, "default = true") + entries.format(2, "default = true"))
    assert problems_of(repository, two) == ["models: a: expected default = true for one version, received it for 1, 2"]
    none = said(repository, entries.format(1, "default = false"))
    assert "expected one version that is the default" in problems_of(repository, none)[0]


@pytest.mark.parametrize(("count", "good"), [(0, False), (1, True), (256, True), (257, False)])
def test_processes_at_their_limits(repository: Path, count: int, good: bool) -> None:
    make(repository, "a", "1")
    file = said(repository, f'[[models]]\nname = "a"\nprocesses = {count}\n')
    if good:
        assert load_deployment(repository, file, ENVIRONMENTS).models[0].processes == count
    else:
        assert "processes: expected a whole number >= 1 and <= 256" in problems_of(repository, file)[0]


FIXED, BOUNDS = "[scale]\nprocesses = 2\n", "[scale]\nmin = 1\nmax = 3\n"


@pytest.mark.parametrize(
    ("package", "entry", "scale"),
    [
        ("", "", (1, 0, 0, 1)),
        (FIXED, "", (2, 0, 0, 2)),
        (FIXED, "processes = 4", (4, 0, 0, 4)),
        (FIXED, "max_processes = 4", (2, 0, 0, 4)),
        (FIXED, "processes = 3\nmax_processes = 4", (3, 0, 0, 4)),
        (FIXED, "min_processes = 1", (1, 1, 2, 2)),
        (FIXED, "min_processes = 0\nmax_processes = 9", (0, 0, 9, 9)),
        (FIXED, "min_processes = 256\nmax_processes = 256", (256, 256, 256, 256)),
        (BOUNDS, "", (1, 1, 3, 3)),
        (BOUNDS, "processes = 5", (5, 0, 0, 5)),
        (BOUNDS, "max_processes = 2", (1, 1, 2, 2)),
        (BOUNDS, "min_processes = 0", (0, 0, 3, 3)),
        (BOUNDS, "min_processes = 3", (3, 3, 3, 3)),
        ("[scale]\nmin = 0\n", "", (0, 0, 1, 1)),
    ],
)
def test_how_many_processes_run(repository: Path, package: str, entry: str, scale: tuple[int, int, int, int]) -> None:
    make(repository, "a", "1", package)
    file = said(repository, f'[[models]]\nname = "a"\n{entry}\n')
    (model,) = load_deployment(repository, file, ENVIRONMENTS).models
    assert (model.processes, model.min_processes, model.max_processes, model.declared) == scale
    assert model.autoscaled == (model.max_processes > 0)
    if not entry:
        assert load_deployment(repository, None, ENVIRONMENTS).models == (model,)


@pytest.mark.parametrize(
    ("package", "entry", "problem"),
    [
        (
            FIXED,
            "processes = 1\nmin_processes = 0",
            "processes: expected either processes, or min_processes and max_processes",
        ),
        (FIXED, "min_processes = 3", "expected min_processes of at most the package's max (2), received 3"),
        (
            FIXED,
            "min_processes = 3\nmax_processes = 2",
            "expected min_processes of at most max_processes (2), received 3",
        ),
        (
            "[scale]\nmin = 2\nmax = 3\n",
            "max_processes = 1",
            "expected the package's min of at most max_processes (1), received 2",
        ),
        (FIXED, "min_processes = -1", "min_processes: expected a whole number >= 0 and <= 256, received -1"),
        (FIXED, "min_processes = 257", "min_processes: expected a whole number >= 0 and <= 256, received 257"),
        (FIXED, "min_processes = 0\nmax_processes = 0", "max_processes: expected a whole number >= 1 and <= 256"),
    ],
)
def test_bounds_that_are_none(repository: Path, package: str, entry: str, problem: str) -> None:
    make(repository, "a", "1", package)
    file = said(repository, f'[[models]]\nname = "a"\n{entry}\n')
    found = problems_of(repository, file)
    assert found[0].startswith(f"{file}: models[0]")
    assert problem in found[0]


def test_every_problem_of_every_package_is_said(repository: Path) -> None:
    make(repository, "a", "1", "[limits]\ntimeout_ms = 0\nunknown = 1\n")
    (make(repository, "b", "1") / "model.py").unlink()
    (repository / "c").mkdir()
    found = "\n".join(problems_of(repository))
    for part in ("a/1/model.toml: limits.timeout_ms", "limits.unknown: unknown key", "b/1", "model.py", "/c: expected"):
        assert part in found


def test_every_problem_of_a_file_is_said(repository: Path) -> None:
    make(repository, "a", "1")
    file = said(
        repository,
        'extra = 1\n[[models]]\nversion = "1"\n[[models]]\nname = "z"\n[[models]]\nname = "a"\nversion = "7"\nx = 1\n'
        '[[models]]\nname = "../models/a"\n[[models]]\nname = "a"\nversion = 1\n',
    )
    found = "\n".join(problems_of(repository, file))
    for part in (
        "extra: unknown key",
        "models[0].name: expected a string",
        "models[1].name: expected a model of",
        'models[2].version: expected a version of a: 1, received "7"',
        "models[2].x: unknown key",
        'received "../models/a"',
        "models[4].version: expected a string, received 1",
    ):
        assert part in found


def test_twice_the_same_and_two_with_one_group_name(repository: Path) -> None:
    make(repository, "a", "1.v2")
    make(repository, "a.v1", "2")
    [problem] = problems_of(repository)
    assert "a version 1.v2 and a.v1 version 2 would both be called a.v1.v2" in problem
    file = said(repository, '[[models]]\nname = "a"\n[[models]]\nname = "a"\n')
    assert problems_of(repository, file) == ["models: a version 1.v2: expected once, received twice"]


def test_without_a_package_the_way_to_a_first_one_is_shown(repository: Path) -> None:
    for path, what in ((repository, "found none"), (repository / "no", "found no")):
        [problem] = problems_of(path)
        assert what in problem
        assert f"modelhost new my_model --runtime python --directory {path}" in problem


def traffic(repository: Path, *entries: str) -> Path:
    """A file of model `a`: version 1 with the first entry's keys, version 2 with the second's, ..."""
    return said(
        repository,
        "".join(f'[[models]]\nname = "a"\nversion = "{number}"\n{keys}\n' for number, keys in enumerate(entries, 1)),
    )


def test_canaries_and_a_shadow_beside_the_default(repository: Path) -> None:
    for version in ("1", "2", "3", "4", "5"):
        make(repository, "a", version)
    file = traffic(
        repository,
        'sticky_header = "X-User-Id"',
        "canary_percent = 5",
        "canary_percent = 94\ndefault = false",
        "shadow_percent = 100\nshadow_tolerance = 1e-3",
    )
    models = load_deployment(repository, file, ENVIRONMENTS).models
    assert [(one.default, one.canary_percent, one.shadow_percent) for one in models] == [
        (True, 0, 0),  # although it is the lowest: the others stand beside it
        (False, 5, 0),
        (False, 94, 0),
        (False, 0, 100),
    ]
    assert [one.sticky_header for one in models] == ["x-user-id", "", "", ""]
    assert [one.shadow_tolerance for one in models] == [1e-6, 1e-6, 1e-6, 1e-3]
    assert [one.is_beside for one in models] == [False, True, True, True]


def test_a_sticky_header_may_stay_when_the_canary_is_gone(repository: Path) -> None:
    make(repository, "a", "1")
    [model] = load_deployment(repository, traffic(repository, 'sticky_header = "a"'), ENVIRONMENTS).models
    assert (model.default, model.sticky_header) == (True, "a")


CONTRADICTIONS = {
    "canary_percent: expected a whole number >= 1 and <= 99, received 0": ("", "canary_percent = 0"),
    "canary_percent: expected a whole number >= 1 and <= 99, received 100": ("", "canary_percent = 100"),
    "canary_percent: expected a whole number >= 1 and <= 99, received 0.5": ("", "canary_percent = 0.5"),
    "shadow_percent: expected a whole number >= 1 and <= 100, received 101": ("", "shadow_percent = 101"),
    "canary_percent: expected it on a version that is not the default, received it with default = true": (
        "",
        "canary_percent = 5\ndefault = true",
    ),
    "shadow_percent: expected it on a version that is not the default, received it with default = true": (
        "shadow_percent = 5\ndefault = true",
    ),
    "shadow_percent: expected either canary_percent or shadow_percent, received both": (
        "",
        "shadow_percent = 5\ncanary_percent = 5",
    ),
    "sticky_header: expected it on the model's default version, received it with canary_percent": (
        "",
        'canary_percent = 5\nsticky_header = "X-User"',
    ),
    "sticky_header: expected it on the default version of a, received it on version 1": (
        'sticky_header = "X-User"',
        "",
    ),
    'sticky_header: expected the name of a header, such as "X-User-Id", received "X User"': (
        'sticky_header = "X User"',
    ),
    "sticky_header: expected a string, received 7": ("sticky_header = 7",),
    "shadow_tolerance: expected it with shadow_percent, received it alone": ("", "shadow_tolerance = 1e-3"),
    "shadow_tolerance: expected a number >= 0 and < 1, received 1": ("", "shadow_percent = 1\nshadow_tolerance = 1"),
    'shadow_tolerance: expected a number >= 0 and < 1, received "1"': (
        "",
        'shadow_percent = 1\nshadow_tolerance = "1"',
    ),
    "models: a: expected canary_percent of at most 99 for all versions together, received 50 + 50": (
        "",
        "canary_percent = 50",
        "canary_percent = 50",
    ),
    "models: a: expected shadow_percent for one version at most, received it for 2": (
        "",
        "shadow_percent = 50",
        "shadow_percent = 50",
    ),
    "models: a: expected one version that is the default, received only versions with": (
        "canary_percent = 50",
        "shadow_percent = 50",
    ),
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_what_contradicts_itself_about_traffic_is_said(repository: Path, message: str) -> None:
    for version in ("1", "2", "3"):
        make(repository, "a", version)
    found = problems_of(repository, traffic(repository, *CONTRADICTIONS[message]))
    assert any(message in problem for problem in found), found


def test_an_empty_file_is_a_problem(repository: Path) -> None:
    make(repository, "a", "1")
    assert "expected at least one [[models]] with a name" in problems_of(repository, said(repository, ""))[0]


def test_socket_paths_at_their_limit(repository: Path) -> None:
    make(repository, "model", "1", "[scale]\nprocesses = 11\n")
    deployment = load_deployment(repository, None, ENVIRONMENTS)
    # /sockets/model.v1/.10.sock.new
    longest = 107 - len("/sockets/model.v1/.10.sock.new")
    for length, good in ((longest, True), (longest + 1, False)):
        run_dir = Path("/" + "r" * (length - 1))
        found = socket_path_problems(deployment, run_dir)
        assert (found == []) is good
        if not good:
            assert f"expected a run_dir of at most {longest} bytes" in found[0]


def test_names_that_leave_no_room_are_said_to_be_too_long(repository: Path) -> None:
    make(repository, "m" * 64, "v" * 64)
    [problem] = socket_path_problems(load_deployment(repository, None, ENVIRONMENTS), Path("/r"))
    assert "expected a shorter model name or version" in problem


def test_what_is_written_is_read(repository: Path, tmp_path: Path) -> None:
    make(repository, "a", "1")
    deployment = load_deployment(repository, None, ENVIRONMENTS)
    write_deployment(tmp_path / "deployment.json", deployment)
    read = read_deployment(tmp_path / "deployment.json")
    assert read == deployment
    assert isinstance(read.models[0], DeployedModel)


def test_a_model_with_an_environment_of_its_own_runs_in_its_interpreter(repository: Path) -> None:
    package = make(repository, "a", "1", '[environment]\nrequirements = "requirements.txt"\n')
    (package / "requirements.txt").write_text("lightgbm==4.6.0\n")
    make(repository, "b", "1", '[environment]\npython = "3.12"\n')
    make(repository, "c", "1")
    first, second, third = load_deployment(repository, None, ENVIRONMENTS).models
    assert first.python != second.python
    for model in (first, second):
        assert model.python is not None
        assert Path(model.python).parent.parent.parent == ENVIRONMENTS
    assert third.python is None


def test_requirements_that_are_none_are_named(repository: Path) -> None:
    package = make(repository, "a", "1", '[environment]\nrequirements = "requirements.txt"\n')
    (package / "requirements.txt").write_text("numpy\n-r others.txt\n")
    assert "requirements.txt: line 2: expected a requirement" in problems_of(repository)[0]
