"""What a running host should run: changed under a lock once everything is checked, in the file and for control."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from host.config.deployment import (
    DeployedModel,
    Deployment,
    Restart,
    load_deployment,
    read_deployment,
    write_deployment,
)
from host.config.deployment_file import draft_of, entries_text, write_deployment_file
from host.config.files import open_lock
from host.config.history import add_to_history, change_of
from host.config.run_dir import RunDirectory
from host.control.groups import read_grants
from host.control.host_record import HostRecord, read_host_record
from host.deployment_checks import deployment_problems
from host.isolation.planning import demands
from host.placement import place
from host.protocol.errors import ConfigError, HostError
from host.supervisor import SupervisorClient

LOCK_S: Final = 10.0
"""Another change is checked and written in less; nobody holds the lock while it waits for the host."""

WAIT_MARGIN_S: Final = 30.0
_LOOK_S: Final = 0.1
_MIB: Final = 1 << 20


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the desired state, checked."""

    generation: int
    """Of the desired state after it; that of before if nothing changes."""
    differences: tuple[str, ...]
    wait_limit_s: float
    """How long the host may take."""
    written: bool = False
    """Whether the deployment file gets other bytes."""
    retried: bool = False
    """Nothing differs, and what had failed or was stopped is started again."""


class DesiredState:
    """The desired state of a running host, and the file that it is written in."""

    def __init__(self, run_dir: RunDirectory) -> None:
        """Raises `ConfigError` if no host runs there or ever did."""
        self.run_dir = run_dir
        self.record: HostRecord = read_host_record(run_dir)

    @property
    def file(self) -> Path:
        """The deployment file, there or not."""
        return self.record.deployment_file

    def desired(self) -> Deployment:
        """What the host should run now."""
        return read_deployment(self.run_dir.deployment)

    def text(self) -> str:
        """The deployment file; for a host that runs without one, a file that says what it runs."""
        try:
            return self.file.read_bytes().decode()
        except FileNotFoundError:
            models = read_deployment(self.run_dir.deployment).models
            return entries_text([_entry_of(model, models) for model in models])
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.file}: cannot be read: {error}") from error

    def change(self, text: str, what: str, *, dry_run: bool, retry: bool, who: str | None = None) -> Change:
        """Make this the deployment file and what the host should run, if it can be. The lock must be held.

        `what`: the command, for the history; `who`: whoever runs this, unless it is said; `retry`: also when nothing
        differs. Raises `ConfigError` with everything that is wrong, and then nothing has changed.
        """
        before = read_deployment(self.run_dir.deployment)
        after = self._checked(text)
        differences = tuple(differences_of(before, after))
        written = self._file_text() != text
        if not differences and not retry:
            if not dry_run and written:
                write_deployment_file(self.file, text)
            wait_limit_s = self._wait_limit_s(before)
            return Change(generation=before.generation, differences=(), wait_limit_s=wait_limit_s, written=written)
        after = msgspec.structs.replace(
            after,
            generation=before.generation + 1,
            draining=before.draining,
            restarts=_still_due(before, after) | self._restarts(_with_other_threads(before, after)),
        )
        self._check_room(after)
        if not dry_run:
            write_deployment_file(self.file, text)
            write_deployment(self.run_dir.deployment, after)
            add_to_history(self.run_dir.history, change_of(what, after, differences, who))
        return Change(
            generation=after.generation,
            differences=differences,
            wait_limit_s=self._wait_limit_s(before, after),
            written=written,
            retried=not differences,
        )

    def restart(self, group: str, slots: Collection[int], what: str, *, in_place: bool) -> Change:
        """Have processes of a version that should run started again, one by one. The lock must be held.

        `in_place`: without one process more meanwhile. Raises `ConfigError` if there is no memory for that one, and
        `HostError`.
        """
        before = read_deployment(self.run_dir.deployment)
        pids = self._restarts([group])[group].pids
        restart = Restart(pids={slot: pid for slot, pid in pids.items() if slot in slots}, in_place=in_place)
        restarts = _still_due(before, before) | {group: restart}
        after = msgspec.structs.replace(before, generation=before.generation + 1, restarts=restarts)
        self._check_room(after)
        write_deployment(self.run_dir.deployment, after)
        add_to_history(self.run_dir.history, change_of(what, after, [f"{group}: {len(slots)} processes again"]))
        return Change(generation=after.generation, differences=(), wait_limit_s=self._wait_limit_s(after))

    def _restarts(self, groups: Collection[str]) -> dict[str, Restart]:
        """All processes that versions have now."""
        if not groups:
            return {}
        processes = SupervisorClient(self.run_dir.supervisor_socket).processes()
        return {
            group: Restart(pids={int(one.name): one.pid for one in processes if one.group == group and one.pid})
            for group in groups
        }

    def _check_room(self, after: Deployment) -> None:
        """While it changes, what is served runs beside what is to be, and one process more of what is restarted."""
        served = read_deployment(self.run_dir.routing)
        groups = {model.group: model for model in (*served.models, *after.models)}
        for group, restart in after.restarts.items():
            if group in groups and not restart.in_place:
                model = groups[group]
                groups[group] = msgspec.structs.replace(model, processes=model.processes + 1)
        both = msgspec.structs.replace(after, models=tuple(groups.values()))
        place(self.record.topology, demands(self.record.settings, both), read_grants(self.run_dir))

    def _file_text(self) -> str | None:
        """What the file holds, exactly; None if there is none."""
        try:
            return self.file.read_bytes().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None

    def _checked(self, text: str) -> Deployment:
        """Read a deployment file's text as if it stood in its place."""
        settings = self.record.settings
        with draft_of(self.file, text) as draft:
            after = load_deployment(settings.repository, draft, settings.environments, settings.features)
        served = read_deployment(self.run_dir.routing)
        there = [*served.models, *read_deployment(self.run_dir.deployment).models]
        problems = [*deployment_problems(settings, after), *_altered(there, after)]
        if after.features != served.features:
            problems.append(f"{settings.features}: features are read when the host starts: modelhost down, then up")
        try:
            self._check_room(after)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(*problems)
        return after

    def _wait_limit_s(self, *deployments: Deployment) -> float:
        loading_s = sum(model.processes * model.limits.startup_s for one in deployments for model in one.models)
        return loading_s + 2 * self.record.settings.drain_s + WAIT_MARGIN_S

    def lock(self) -> AbstractContextManager[None]:
        """One change at a time. Raises `HostError` if another one takes too long."""
        return change_lock(self.run_dir)


@contextmanager
def change_lock(run_dir: RunDirectory) -> Iterator[None]:
    """One change of a host at a time, whether it runs or not. Raises `HostError` if another one takes too long."""
    file = open_lock(run_dir.change_lock)
    deadline = time.monotonic() + LOCK_S
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HostError("another change of this host is being made; try again") from None
            time.sleep(_LOOK_S)
        yield
    finally:
        os.close(file)


# -- what differs ---------------------------------------------------------------------------------------------
def differences_of(before: Deployment, after: Deployment) -> Iterator[str]:
    """What changes, a line for each model that does."""
    old, new = _by_name(before), _by_name(after)
    for name in dict.fromkeys([*old, *new]):
        was, becomes = old.get(name, {}), new.get(name, {})
        lines = list(_model_differences(was, becomes))
        if lines:
            yield f"{name}: {', '.join(lines)}"


def _model_differences(was: dict[str, DeployedModel], becomes: dict[str, DeployedModel]) -> Iterator[str]:
    gone = [version for version in was if version not in becomes]
    fresh = [version for version in becomes if version not in was]
    if len(gone) == len(fresh) == 1:
        yield f"version {gone[0]} -> {fresh[0]}"
        yield from _version_differences(was[gone[0]], becomes[fresh[0]])
    else:
        yield from (f"version {version} removed" for version in gone)
        for version in fresh:
            model = becomes[version]
            default = "" if model.default else f", {_role(model)}"
            yield f"version {version} added ({_processes(model)} processes, {_mib(model)} each{default})"
    for version in was:
        if version in becomes:
            prefix = f"version {version} " if len(becomes) > 1 else ""
            yield from (f"{prefix}{line}" for line in _version_differences(was[version], becomes[version]))


def _version_differences(was: DeployedModel, becomes: DeployedModel) -> Iterator[str]:
    scaled = was.autoscaled or becomes.autoscaled
    if _processes(was) != _processes(becomes):
        yield f"processes {_processes(was)} -> {_processes(becomes)}"
    declared = (was.declared, becomes.declared)
    if not scaled and was.declared != becomes.declared and declared != (was.processes, becomes.processes):
        yield f"max_processes {was.declared} -> {becomes.declared}"
    old_bytes, new_bytes = was.resources.memory_bytes, becomes.resources.memory_bytes
    if old_bytes != new_bytes:
        exact = _mib(was) == _mib(becomes)
        yield f"memory {old_bytes} -> {new_bytes} bytes" if exact else f"memory {_mib(was)} -> {_mib(becomes)}"
    for key in ("cpus", "threads"):
        old, new = getattr(was.resources, key), getattr(becomes.resources, key)
        if old != new:
            yield f"{key} {old} -> {new}"
    if was.default != becomes.default:
        yield "the default now" if becomes.default else "not the default any more"
    for key in ("canary_percent", "shadow_percent", "shadow_tolerance", "sticky_header", "judge"):
        old, new = getattr(was, key), getattr(becomes, key)
        if old != new:
            yield f"{key} {old or 'none'} -> {new or 'none'}"


def _with_other_threads(before: Deployment, after: Deployment) -> list[str]:
    """Versions whose processes have to start again to run with as many threads as they should."""
    threads = {model.group: model.resources.threads for model in before.models}
    return [one.group for one in after.models if threads.get(one.group, one.resources.threads) != one.resources.threads]


def _still_due(before: Deployment, after: Deployment) -> dict[str, Restart]:
    groups = {model.group for model in after.models}
    return {group: restart for group, restart in before.restarts.items() if group in groups}


def _role(model: DeployedModel) -> str:
    """What a version is for that is not the default."""
    if model.canary_percent:
        return f"canary of {model.canary_percent} %"
    return f"shadow of {model.shadow_percent} %" if model.shadow_percent else "not the default"


def _altered(there: Iterable[DeployedModel], after: Deployment) -> Iterator[str]:
    """Versions whose packages are not what they were: what runs could not be told from what would start."""
    old = {model.group: model for model in there}
    for model in after.models:
        was = old.get(model.group)
        if was is not None and _of_the_package(was) != _of_the_package(model):
            yield (
                f"{model.name} version {model.version}: expected the package that runs, received one that was changed: "
                "a version stays as it is; hand the change over as another version"
            )


def _of_the_package(model: DeployedModel) -> tuple[object, ...]:
    return (model.package, model.platform, model.signature, model.limits, model.sandbox, model.python)


def _by_name(deployment: Deployment) -> dict[str, dict[str, DeployedModel]]:
    models: dict[str, dict[str, DeployedModel]] = {}
    for model in deployment.models:
        models.setdefault(model.name, {})[model.version] = model
    return models


def _processes(model: DeployedModel) -> str:
    return f"{model.min_processes} to {model.max_processes}" if model.autoscaled else str(model.processes)


def _mib(model: DeployedModel) -> str:
    return f"{model.resources.memory_bytes / _MIB:,.0f} MiB"


def _entry_of(model: DeployedModel, models: Sequence[DeployedModel]) -> dict[str, object]:
    entry: dict[str, object] = {"name": model.name, "version": model.version}
    if model.autoscaled:
        entry |= {"min_processes": model.min_processes, "max_processes": model.max_processes}
    else:
        entry["processes"] = model.processes
        if model.declared > model.processes:
            entry["max_processes"] = model.declared
    if sum(other.name == model.name for other in models) > 1:
        entry["default"] = model.default
    return entry
