"""What control does to supervisord, cgroups and the run directory for one model version. Every step may be repeated."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from host.config.deployment import DeployedModel, Deployment
from host.config.features import Features
from host.config.files import write_atomically
from host.config.run_dir import FEATURES_GROUP, RunDirectory
from host.control.host_record import HostRecord
from host.isolation.cgroups import CgroupError
from host.isolation.planning import Layout, demands
from host.isolation.prepare import interpreter_directories, prepare_processes, pythons, read_record
from host.placement import Grant, place
from host.protocol.counters import retire_counters
from host.protocol.errors import HostError
from host.supervisor import (
    FAULT_ALREADY_STARTED,
    FAULT_BAD_NAME,
    FAULT_NOT_RUNNING,
    AsyncSupervisorClient,
    SupervisorFault,
)
from supervisor_conf.render import render

logger = logging.getLogger("modelhost.control")


class Groups:
    """The model versions that supervisord knows."""

    def __init__(self, run_dir: RunDirectory, record: HostRecord, supervisor: AsyncSupervisorClient) -> None:
        self._run_dir = run_dir
        self._settings = record.settings
        self._programs = record.programs
        self._topology = record.topology
        self._supervisor = supervisor
        self._prefixes: dict[str, tuple[str, ...]] = {}

    async def declare(self, group: str, known: Iterable[DeployedModel], features: Features) -> None:
        """Prepare a version among all that are known, and tell supervisord. Raises `HostError`, `OSError`."""
        deployment = Deployment(tuple(known), features)
        await asyncio.to_thread(self._prepare, deployment)
        await self._supervisor.call("slots.declare", group)

    async def start(self, program: str) -> None:
        """Start a slot, and do not wait for it. Raises `HostError`."""
        try:
            await self._supervisor.call("startProcess", program, False)
        except SupervisorFault as fault:
            if fault.code != FAULT_ALREADY_STARTED:
                raise

    async def stop(self, program: str) -> None:
        """Stop a slot, and do not wait for it. Raises `HostError`."""
        try:
            await self._supervisor.call("stopProcess", program, False)
        except SupervisorFault as fault:
            if fault.code not in (FAULT_NOT_RUNNING, FAULT_BAD_NAME):
                raise

    async def remove(self, group: str, left: Iterable[DeployedModel], features: Features) -> None:
        """Remove a version whose slots are stopped, and all that was made for it. Raises `HostError`, `OSError`."""
        try:
            await self._supervisor.call("removeProcessGroup", group)
        except SupervisorFault as fault:
            if fault.code != FAULT_BAD_NAME:
                raise
        await asyncio.to_thread(self._clear, group, Deployment(tuple(left), features))

    # -- in a thread --------------------------------------------------------------------------------------
    def _prepare(self, deployment: Deployment) -> None:
        grants = place(self._topology, demands(self._settings, deployment), read_grants(self._run_dir))
        isolation = read_record(self._run_dir)
        if isolation is None:
            raise HostError(f"{self._run_dir.isolation}: expected what this host allows, as modelhost up writes it")
        programs = self._programs
        for python in pythons(deployment, programs.model_python):
            if python not in self._prefixes:
                self._prefixes[python] = interpreter_directories(python)
        layout = Layout(code_root=programs.code_root, model_python=programs.model_python, prefixes=self._prefixes)
        try:
            prepare_processes(self._settings, deployment, grants, isolation.abilities, layout)
        except CgroupError as error:
            raise HostError(f"cgroups: {error.strerror}") from error
        write_grants(self._run_dir, grants)
        self._write_config(deployment)

    def _clear(self, group: str, left: Deployment) -> None:
        run_dir = self._run_dir
        self._write_config(left)
        isolation = read_record(run_dir)
        if isolation is not None and isolation.tree is not None:
            try:
                isolation.tree.remove(group)
            except CgroupError as error:
                raise HostError(f"cgroups: {error.strerror}") from error
        shutil.rmtree(run_dir.group_sockets(group), ignore_errors=True)
        retire_counters(run_dir.counters, {FEATURES_GROUP, *(model.group for model in left.models)})
        for path in run_dir.slots.iterdir():
            if path.name.partition(":")[0] == group:
                path.unlink(missing_ok=True)
        grants = {name: grant for name, grant in read_grants(run_dir).items() if name.partition(":")[0] != group}
        write_grants(run_dir, grants)

    def _write_config(self, deployment: Deployment) -> None:
        write_config(self._run_dir, render(self._settings, deployment, self._programs))


def write_config(run_dir: RunDirectory, files: Mapping[str, str]) -> None:
    """Write supervisord's configuration, by names relative to the run directory."""
    for name, text in files.items():
        write_atomically(run_dir.root / name, text.encode())


def read_grants(run_dir: RunDirectory) -> dict[str, Grant]:
    """The grants in force, by program; none if nothing was written."""
    try:
        return msgspec.json.decode(run_dir.grants.read_bytes(), type=dict[str, Grant])
    except (OSError, msgspec.DecodeError):
        return {}


def write_grants(run_dir: RunDirectory, grants: Mapping[str, Grant]) -> None:
    """Write the grants in force."""
    write_atomically(run_dir.grants, msgspec.json.encode(grants))


def models_of(known: Mapping[str, DeployedModel], without: Sequence[str] = ()) -> list[DeployedModel]:
    """The versions that are known, in the order of their groups."""
    return [known[group] for group in sorted(known) if group not in without]
