"""The roles and playbooks as Ansible's own tools see them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ANSIBLE = CHECKOUT / "ansible"
BIN = Path(sys.executable).parent
PLAYBOOKS = sorted(ANSIBLE.glob("*.yml"))


def run(tmp_path: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool beside the playbooks, which finds our modules wherever it begins, and keeps its caches elsewhere."""
    found = {
        "ANSIBLE_LIBRARY": ANSIBLE / "library",
        "ANSIBLE_MODULE_UTILS": ANSIBLE / "module_utils",
        "ANSIBLE_ACTION_PLUGINS": ANSIBLE / "action_plugins",
        "ANSIBLE_FILTER_PLUGINS": ANSIBLE / "filter_plugins",
        "ANSIBLE_HOME": tmp_path,
        "XDG_CACHE_HOME": tmp_path,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    return subprocess.run(
        command,
        cwd=ANSIBLE,
        env={**os.environ, **{key: str(value) for key, value in found.items()}},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )


def test_ansible_lint_finds_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, BIN / "ansible-lint", "--offline", "--profile", "production", "--project-dir", ANSIBLE)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: str(path.name))
def test_a_playbook_can_be_read(playbook: Path, tmp_path: Path) -> None:
    inventory = ANSIBLE / "inventories" / "example"
    done = run(tmp_path, BIN / "ansible-playbook", "-i", inventory, "--syntax-check", playbook)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: str(path.name))
def test_a_playbook_says_how_it_is_run(playbook: Path) -> None:
    text = playbook.read_text()
    assert f"ansible-playbook -i INVENTORY ansible/{playbook.name}" in text


def test_hosts_take_turns_in_the_order_of_the_inventory() -> None:
    """A group that `group_by` makes has the order in which hosts answered, another one every time."""
    batched = [play for playbook in PLAYBOOKS for play in yaml.safe_load(playbook.read_text()) if "serial" in play]
    assert len(batched) == 6
    assert [play["name"] for play in batched if not play["hosts"].startswith("modelhost:&")] == []
