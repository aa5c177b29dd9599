"""The monitoring role writes into a directory what a real promtool accepts, and names every host of the inventory."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_server import program
from roles import changed_tasks, run_playbook

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

INVENTORY: dict[str, Any] = {
    "all": {
        "children": {
            "modelhost": {
                "hosts": {
                    "h1": {"ansible_host": "10.0.0.1", "modelhost_zone": "a", "modelhost_admin_port": 9081},
                    "h2": {
                        "ansible_host": "10.0.0.2",
                        "modelhost_address": "10.1.0.2",
                        "modelhost_admin_address": "::",
                    },
                    "h3": {"ansible_host": "10.0.0.3", "modelhost_admin_address": "2001:db8::3"},
                }
            },
            "haproxy": {
                "hosts": {
                    "watcher": {"ansible_connection": "local"},
                    "b2": {"ansible_host": "10.0.0.5", "haproxy_stats_address": "*", "haproxy_stats_port": 9404},
                    "b3": {"ansible_host": "10.0.0.6"},
                }
            },
            "monitoring": {"hosts": {"watcher": {}}},
        }
    }
}


class Watcher:
    """The role on a host `watcher`, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "prometheus"
        (directory / "play.yml").write_text("- hosts: monitoring\n  gather_facts: false\n  roles: [monitoring]\n")
        self.variables: dict[str, Any] = {
            "monitoring_install": False,
            "monitoring_service_managed": False,
            "monitoring_promtool": program("promtool"),
            "monitoring_config_dir": str(self.config),
            "monitoring_grafana_dir": str(directory / "grafana"),
            "monitoring_dashboards_dir": str(directory / "dashboards"),
            "monitoring_prometheus_url": "http://127.0.0.1:9999",
            "monitoring_labels": {"environment": "test"},
        }

    def run(self, *arguments: str, inventory: dict[str, Any] = INVENTORY, fails: bool = False) -> str:
        path = self.directory / "hosts.json"
        path.write_text(json.dumps(inventory))
        return run_playbook(self.directory, self.variables, *arguments, inventory=str(path), fails=fails)

    def targets(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.config / "targets" / f"{name}.json").read_text())
        return found


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher(tmp_path)


def test_prometheus_and_grafana_are_configured(watcher: Watcher, tmp_path: Path) -> None:
    (tmp_path / "grafana").mkdir()
    checked = changed_tasks(watcher.run("--check"))
    assert not watcher.config.exists(), "check mode writes nothing"
    said = watcher.run()
    assert changed_tasks(said) == checked | {"Restart Grafana", "Reload Prometheus"} & changed_tasks(said)
    assert changed_tasks(watcher.run()) == set()
    assert "b3: haproxy_stats_address is 127.0.0.1" in said
    assert watcher.targets("modelhost") == [
        {"targets": ["10.0.0.1:9081"], "labels": {"host": "h1", "zone": "a", "environment": "test"}},
        {"targets": ["10.1.0.2:8081"], "labels": {"host": "h2", "environment": "test"}},
        {"targets": ["[2001:db8::3]:8081"], "labels": {"host": "h3", "environment": "test"}},
    ]
    assert watcher.targets("haproxy") == [
        {"targets": ["127.0.0.1:8404"], "labels": {"host": "watcher", "environment": "test"}},
        {"targets": ["10.0.0.5:9404"], "labels": {"host": "b2", "environment": "test"}},
    ]
    tool = [program("promtool"), "check", "config", str(watcher.config / "prometheus.yml")]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    source = (tmp_path / "grafana" / "datasources" / "modelhost.yml").read_text()
    assert "url: http://127.0.0.1:9999\n" in source
    provider = (tmp_path / "grafana" / "dashboards" / "modelhost.yml").read_text()
    assert f"path: {tmp_path / 'dashboards'}\n" in provider
    assert json.loads((tmp_path / "dashboards" / "modelhost.json").read_text())["panels"]


def test_grafana_is_left_alone_where_there_is_none(watcher: Watcher, tmp_path: Path) -> None:
    watcher.run()
    assert not (tmp_path / "grafana").exists()
    assert not (tmp_path / "dashboards").exists()


def test_a_host_that_cannot_be_reached_is_named(watcher: Watcher) -> None:
    inventory = json.loads(json.dumps(INVENTORY))
    inventory["all"]["children"]["modelhost"]["hosts"]["h1"]["modelhost_admin_address"] = "127.0.0.1"
    assert "h1: modelhost_admin_address is 127.0.0.1" in watcher.run(inventory=inventory, fails=True)
    assert not watcher.config.exists()
