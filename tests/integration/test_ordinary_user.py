"""A host that does not run as root, and may not make cgroups: best effort says what is missing, required refuses."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import CHECKOUT, RunningHost
from packages import write_fragile
from probing import told, write_probing

from host.isolation.prepare import interpreter_directories

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

USER = 1_800_000_001


class OrdinaryHost(RunningHost):
    """A host, and every command about it, run by an ordinary user."""

    def __init__(self, repository: Path, work: Path, **options: Any) -> None:
        shown = [*interpreter_directories(sys.executable), str(CHECKOUT), str(repository)]
        ordinary = [sys.executable, str(Path(__file__).with_name("ordinary.py")), str(USER), str(work), *shown, "--"]
        super().__init__(repository, prefix=ordinary, **options)
        os.chown(self.directory, USER, USER)


@pytest.fixture
def work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as directory:
        yield Path(directory)


def test_best_effort_runs_and_says_what_is_missing(repository: Path, work: Path) -> None:
    repository.chmod(0o755)
    write_probing(repository)
    write_fragile(repository)
    with OrdinaryHost(repository, work) as host:
        said = host.start()
        assert "isolation: this host does not allow" in said
        assert "a user of each model's own: modelhost does not run as root" in said
        document = json.loads(host.command("status", "--isolation", "--json").stdout)
        missing = document["missing"]
        assert any(text.startswith("cgroups: ") for text in missing)
        (worker,) = (one for one in document["processes"] if one["program"] == "probing.v1:0")
        assert (worker["user"], worker["cgroup"], worker["capabilities"]) == (USER, None, "none")
        assert (worker["no_new_privileges"], worker["core_dumps"], worker["oom_score_adj"]) == (True, False, 500)
        namespaces = not any("a view of the file system" in text for text in missing)
        # Where user namespaces are allowed, an ordinary user's models have their own view and network too.
        assert told(host, "setuid 0").startswith("refused: ")
        reached = told(host, f"tcp {host.port}")
        assert reached.startswith("refused") if namespaces else reached == "connected"
        assert (told(host, f"names {host.run_dir.root}") == ["sockets"]) is namespaces
        assert host.command("status", "--isolation").returncode == 1


def test_required_refuses_with_everything_that_is_missing(repository: Path, work: Path) -> None:
    repository.chmod(0o755)
    write_fragile(repository)
    with OrdinaryHost(repository, work, settings={"isolation": "required"}) as host:
        with pytest.raises(AssertionError) as failure:
            host.start()
        said = str(failure.value)
        assert 'isolation = "required", and this host does not allow cgroups: ' in said
        assert "does not allow a user of each model's own: modelhost does not run as root" in said
        assert host.wait_for_end() == 2
