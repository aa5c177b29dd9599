"""The tests of isolation once more, on a kernel with cgroup v2: in a guest, where this machine has v1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uml

from host.isolation.cgroups import own_hierarchy

HERE = Path(__file__).parent
FILES = ("test_isolation.py", "test_delegation.py", "test_ordinary_user.py")
HIERARCHY = own_hierarchy()
LIMIT_S = 900

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root in the guest's file system"),
    pytest.mark.skipif(shutil.which(uml.PROGRAM) is None, reason="needs Debian's user-mode-linux"),
    pytest.mark.skipif(HIERARCHY is not None and HIERARCHY.version == 2, reason="this machine has cgroup v2 itself"),
]


@pytest.mark.timeout(LIMIT_S + 60)
def test_isolation_on_cgroup_v2() -> None:
    """Some five times slower than here, so its waits may be five times longer."""
    guest = [sys.executable, uml.__file__, "--memory", "6G", "--limit-s", str(LIMIT_S), "--"]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "300"]
    done = subprocess.run(
        [*guest, *tests, *(str(HERE / name) for name in FILES)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATIENCE": "5"},
        cwd=HERE.parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout, done.stdout
