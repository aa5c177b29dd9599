"""What a model needs, and the name that follows from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.config.environments import EnvironmentNeed, environment_python, need_of, read_requirements
from host.protocol.errors import ConfigError
from host.protocol.package import Package, parse_package

TENSOR = {"name": "x", "datatype": "FP64", "shape": [-1, 1]}


def package(**environment: Any) -> Package:
    table = {"runtime": "python", "inputs": [TENSOR], "outputs": [TENSOR], "environment": environment}
    return parse_package("churn", "1", table)


def test_a_package_that_asks_for_nothing_has_none(tmp_path: Path) -> None:
    assert need_of(package(), tmp_path) is None


def test_without_a_version_it_is_the_python_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("b==2\na==1\n")
    need = need_of(package(requirements="r.txt"), tmp_path)
    assert need == EnvironmentNeed(
        python=f"{sys.version_info.major}.{sys.version_info.minor}", requirements=("a==1", "b==2")
    )
    assert need_of(package(python="3.12"), tmp_path) == EnvironmentNeed(python="3.12", requirements=())


def test_comments_order_and_spaces_make_no_other_environment(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    texts = (
        "a==1\nb >= 2 ; python_version < '3.12'\n",
        "# what it needs\n\nb  >=  2 ; python_version < '3.12'  # why\na==1",
        "b >= 2 \\\n   ; python_version < '3.12'\na==1\na==1\n",
    )
    found = set()
    for text in texts:
        path.write_text(text)
        found.add(read_requirements(path))
    assert found == {("a==1", "b >= 2 ; python_version < '3.12'")}


@pytest.mark.parametrize(
    "line",
    ["-r other.txt", "--find-links /wheels", "-e .", "--index-url=https://x", "./wheels/a.whl", "/wheels/a.whl",
     "a @ file:///wheels/a.whl"],
)  # fmt: skip
def test_what_may_change_behind_a_name_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.txt"
    path.write_text(f"numpy\n\n{line}\n")
    with pytest.raises(ConfigError, match=r"r\.txt: line 3: expected a requirement"):
        read_requirements(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_bytes(b"\xff")
    for name in ("r.txt", "none.txt"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
            read_requirements(tmp_path / name)


NEEDS = st.builds(
    EnvironmentNeed,
    python=st.sampled_from(["3.11", "3.12"]),
    requirements=st.lists(st.sampled_from(["a", "b==1", "b==2", "a b", "c"]), unique=True).map(sorted).map(tuple),
)


@given(NEEDS, NEEDS)
def test_equal_needs_have_one_key_and_others_another(one: EnvironmentNeed, other: EnvironmentNeed) -> None:
    assert (one.key == other.key) == (one == other)
    assert (environment_python(Path("/e"), one) == environment_python(Path("/e"), other)) == (one == other)
