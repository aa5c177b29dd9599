"""Roles of `ansible/roles` on this machine, in a directory of the test's: a local connection, and no root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hosts import CHECKOUT

ANSIBLE = CHECKOUT / "ansible"
PLAYBOOK_LIMIT_S = 180.0
"""Alone one takes 5 s. Beside a fleet that was being made, with more load on top, one was not over after 60 s."""


def run_playbook(
    directory: Path, variables: Mapping[str, Any], *arguments: str, inventory: str = "localhost,", fails: bool = False
) -> str:
    """Run `play.yml` of a directory; back with what Ansible says."""
    path = directory / "variables.json"
    path.write_text(json.dumps({"ansible_python_interpreter": sys.executable, **variables}))
    playbook = [sys.executable, "-m", "ansible.cli.playbook", "-i", inventory, str(directory / "play.yml")]
    try:
        done = _run([*playbook, "-e", f"@{path}", *arguments], directory)
    except subprocess.TimeoutExpired as late:
        said = b"".join(part or b"" for part in (late.stdout, late.stderr)).decode()
        pytest.fail(f"the playbook did not end within {PLAYBOOK_LIMIT_S:g} s, after this:\n{said}")
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def _run(command: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PLAYBOOK_LIMIT_S,
        check=False,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "ANSIBLE_ROLES_PATH": str(ANSIBLE / "roles"),
            "ANSIBLE_LIBRARY": str(ANSIBLE / "library"),
            "ANSIBLE_LOCAL_TEMP": str(directory / "ansible"),
            "ANSIBLE_REMOTE_TMP": str(directory / "ansible"),
            "ANSIBLE_HOME": str(directory / "ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
        },
    )


def changed_tasks(said: str) -> set[str]:
    """The names of the tasks that changed something, by what Ansible says."""
    found, task = set(), ""
    for line in said.splitlines():
        if line.startswith(("TASK [", "RUNNING HANDLER [")):
            task = line.partition("[")[2].partition("]")[0].rpartition(" : ")[2]
        elif line.startswith("changed: "):
            found.add(task)
    return found
