"""An operator of a fleet: an inventory, packages of models, and the playbooks run as the README says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from fleet import BALANCER, CHECKOUT, Fleet
from hosts import tensors
from load import Target
from versions import write_versions
from wheelhouse import wheelhouse

ANSIBLE: Final = CHECKOUT / "ansible"
PLAY_LIMIT_S: Final = 480.0
AGREE_LIMIT_S: Final = 60.0
"""For what a busy machine has begun and not ended when a playbook ends; what stays wrong is wrong."""
PORT: Final = 8080
_RECAP: Final = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Played:
    """How a playbook ended."""

    code: int
    said: str
    took_s: float

    @property
    def changed(self) -> dict[str, int]:
        """Host to the number of its tasks that changed something."""
        return {host: int(changed) for host, _, changed, _, _ in _RECAP.findall(self.said)}


class Operator:
    """Somebody with an inventory, a directory of packages, and `ansible-playbook`."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.wheels = wheelhouse()
        self.packages = fleet.directory / "packages"
        self.packages.mkdir()
        self.directory = fleet.inventory.parent
        self.changes = self.directory / "group_vars" / "all" / "modelhost_changes.yml"
        self.write(
            "group_vars/all/modelhost.yml",
            modelhost_version=self.wheels.version,
            modelhost_wheelhouse=str(self.wheels.directory),
            modelhost_packages=str(self.packages),
            haproxy_served_by=True,
            # A host or balancer that stands still for a second is up. One without power fails at the connection.
            haproxy_check_timeout_ms=5000,
            max_slowdown=100,  # whoever else uses this machine is no fault of a version
            ansible_pipelining=True,
        )

    # -- the inventory --------------------------------------------------------------------------------------------
    def write(self, name: str, **variables: Any) -> None:
        """Write a file of the inventory."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(variables))

    def place(self, **hosts: Mapping[str, Mapping[str, Any]]) -> None:
        """Say what runs on hosts, in their own files."""
        for host, models in hosts.items():
            self.write(f"host_vars/{host}.yml", modelhost_models=dict(models))

    def add_packages(self, name: str, versions: Sequence[str], **more: Any) -> None:
        """Pack versions of a model (`versions.write_versions`)."""
        repository = self.fleet.directory / "repository"
        write_versions(repository, versions, name, **more)
        for version in versions:
            package = repository / name / version
            command = [sys.executable, "-P", "-m", "host.cli", "pack", package, "--output", self.packages]
            subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True, timeout=60)

    # -- playbooks --------------------------------------------------------------------------------------------------
    def play(self, name: str, *flags: str, ok: bool | None = True, **extra: Any) -> Played:
        """Run a playbook of the repository; `extra` are its variables. `ok`: how it must end, if that matters."""
        command: list[str | Path] = ["ansible-playbook", "-i", self.fleet.inventory, ANSIBLE / name, *flags]
        for key, value in extra.items():
            command += ["-e", f"{key}={value}"]
        began_s = time.monotonic()
        done = self.fleet.run_in_controller(command, limit_s=PLAY_LIMIT_S, check=False)
        played = Played(done.returncode, done.stdout + done.stderr, time.monotonic() - began_s)
        sys.stdout.write(played.said)  # for whoever has to find out why a test failed
        assert ok is None or (played.code == 0) is ok, played.said
        return played

    def play_until_ok(self, name: str) -> None:
        """Run a playbook that changes nothing again until it ends well."""
        deadline = time.monotonic() + AGREE_LIMIT_S
        while (played := self.play(name, ok=None)).code != 0:
            assert time.monotonic() < deadline, played.said

    # -- what there is ----------------------------------------------------------------------------------------------
    def on(self, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of modelhost's commands on a host."""
        command = "/opt/modelhost/current/bin/modelhost"
        return self.fleet.ssh(host, [command, *arguments, "--config", "/etc/modelhost/modelhost.toml"], check=False)

    def models(self, host: str) -> list[dict[str, Any]]:
        """What a host says of its models, when it can."""
        deadline = time.monotonic() + AGREE_LIMIT_S
        while "models" not in (said := json.loads(self.on(host, "status", "--json").stdout)):
            assert time.monotonic() < deadline, said
        found: list[dict[str, Any]] = said["models"]
        return found

    def running(self, host: str) -> dict[str, str]:
        """Model to version of what a host serves."""
        return {model["name"]: model["version"] for model in self.models(host) if model["state"] == "serving"}

    def pids(self, host: str, model: str) -> list[int]:
        """Processes of a model on a host."""
        return [slot["pid"] for one in self.models(host) if one["name"] == model for slot in one["slots"]]

    def target(self, model: str, rate: float) -> Target:
        """Requests for a model through the balancer."""
        url = f"http://{self.fleet.addresses[BALANCER]}:{PORT}/v2/models/{model}/infer"
        body = json.dumps(tensors(x=("INT64", [1, 1], [1])))
        # One that was with a host that loses power is answered by another after some 7 s, and later on a busy machine.
        return Target(name=model, url=url, body=body, rate=rate, timeout_s=20.0)
