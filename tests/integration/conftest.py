"""Hosts of real processes: one for all tests that only ask, one of its own for each test that kills."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from cassandra_nodes import REQUIRED, CassandraNodes, missing
from hosts import CHECKOUT, HandHost, RunningHost
from packages import UNHURRIED, Gate, write_fragile, write_gated, write_texts, write_typed, write_variable

LONG: Final = (
    "test_cgroup_v2",
    "test_rollouts",
    "test_haproxy",
    "test_ansible_modules",
    "test_cassandra_faults",
    "test_cassandra_ring",
    "test_features_outage",
    "test_isolation",
    "test_up",
    "test_doctor",
)
"""Modules that take minutes begin first: two processes share the modules, and neither should wait for the other. Those
that measure time come after those that compute much."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, in their order; the others as they were."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session")
def bundled() -> Iterator[Path]:
    """Train the bundled models; give their repository."""
    repository = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    train = CHECKOUT / "models" / "bundled" / "train.py"
    subprocess.run(
        [sys.executable, "-P", str(train), "--repository", str(repository)], check=True, timeout=60, capture_output=True
    )
    yield repository
    shutil.rmtree(repository)


@pytest.fixture(scope="session")
def everything(bundled: Path) -> Iterator[Path]:
    """Give a repository of the bundled models and the tests' own. None of them is in a hurry, nor is a feature view."""
    repository = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    shutil.copytree(bundled, repository, dirs_exist_ok=True)
    for model in repository.glob("*/*/model.toml"):
        text, count = re.subn(r"(?m)^timeout_ms = \d+", f"timeout_ms = {UNHURRIED['timeout_ms']}", model.read_text())
        assert count == 1, model
        model.write_text(text)
    views = repository / "features.toml"
    views.write_text(re.sub(r"(?m)^\[\[views\]\].*$", "[[views]]\ntimeout_ms = 5000", views.read_text()))
    for write in (write_texts, write_typed, write_variable, write_fragile, write_gated):
        write(repository)
    yield repository
    shutil.rmtree(repository)


@pytest.fixture(scope="session")
def host(everything: Path) -> Iterator[RunningHost]:
    """Give one host for every test that leaves it as it was."""
    with RunningHost(everything) as running:
        running.start()
        yield running


@pytest.fixture
def repository() -> Iterator[Path]:
    """Give an empty repository with a short path, to write packages into."""
    path = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_host() -> Iterator[Callable[..., RunningHost]]:
    """Give a way to make hosts for one test; they are stopped after it."""
    with ExitStack() as made:

        def make(repository: Path, **options: Any) -> RunningHost:
            return made.enter_context(RunningHost(repository, **options))

        yield make


@pytest.fixture
def make_hand_host() -> Iterator[Callable[..., HandHost]]:
    """Give a way to make hosts whose processes the test starts one by one; what still runs is stopped after it."""
    with ExitStack() as made:

        def make(repository: Path, **options: Any) -> HandHost:
            return made.enter_context(HandHost(repository, **options))

        yield make


@pytest.fixture
def gate(everything: Path) -> Iterator[Gate]:
    """Set up the gate of the shared host's gated model."""
    standing = Gate(everything / "gated" / "1")
    yield standing
    standing.remove()


def _require_cassandra() -> None:
    """Skip, or fail where the environment says that it must be there, if Cassandra cannot run here."""
    reason = missing()
    if reason is not None and os.environ.get(REQUIRED):
        pytest.fail(f"{reason} ({REQUIRED} is set)")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cassandra() -> Iterator[CassandraNodes]:
    """Give one node for all tests; who kills or freezes it brings it back."""
    _require_cassandra()
    with CassandraNodes(1) as nodes:
        nodes.start()
        yield nodes


@pytest.fixture(scope="module")
def cassandra_ring() -> Iterator[CassandraNodes]:
    """Give three nodes, to the tests of one module; who kills or freezes one brings it back."""
    _require_cassandra()
    with CassandraNodes(3) as nodes:
        nodes.start()
        yield nodes
