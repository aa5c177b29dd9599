"""Which host is looked at: the one that runs in the run directory, as it was started, or the one `up` would run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from host.cli.preflight import find_programs, holder_pid, supervisor_pid
from host.config.deployment import Deployment, load_deployment, read_deployment
from host.config.run_dir import RunDirectory
from host.config.settings import HostSettings, LoadedSettings
from host.control.host_record import read_host_record
from host.isolation.planning import demands
from host.protocol.errors import ConfigError
from supervisor_conf.render import Programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One host."""

    settings: HostSettings
    """Of a host that runs: those that it was started with."""
    deployment_file: Path
    programs: Programs
    desired: Deployment
    """Of a host that runs: what it is to run now; else what `up` would run, as far as that can be read."""
    routed: Deployment
    """What the fronts serve; nothing if no host runs."""
    up_pid: int | None
    """Of `modelhost up`, which holds the lock; None: nobody does; 0: just coming or going."""
    supervisor_pid: int | None
    problems: tuple[str, ...] = ()
    """Why not all of that is known."""

    @property
    def running(self) -> bool:
        """Whether a host runs here, or what a killed one left."""
        return self.up_pid is not None or self.supervisor_pid is not None

    @property
    def run_dir(self) -> RunDirectory:
        """The run directory's paths."""
        return RunDirectory(self.settings.run_dir)

    @property
    def programs_wanted(self) -> tuple[str, ...]:
        """Every process that should run, as supervisord names them."""
        return tuple(dict.fromkeys(demand.name for demand in demands(self.settings, self.desired)))

    @property
    def loaded(self) -> LoadedSettings:
        """The settings, for what plans by them."""
        return LoadedSettings(settings=self.settings, sources={}, file=None, deployment_file=self.deployment_file)


def find_target(loaded: LoadedSettings) -> Target:
    """Look who runs in the run directory, and read what it was told."""
    settings, file = loaded.settings, loaded.deployment_file
    run_dir = RunDirectory(settings.run_dir)
    problems: list[str] = []
    if run_dir.root.exists() and not os.access(run_dir.root, os.R_OK | os.X_OK):
        problems.append(
            f"{run_dir.root}: cannot be looked into by uid {os.geteuid()}: expected to be asked as its owner, "
            f"uid {run_dir.root.stat().st_uid}"
        )
    up_pid, supervisor = holder_pid(run_dir), supervisor_pid(run_dir)
    programs, desired, routed = find_programs(settings), Deployment(), Deployment()
    try:
        if up_pid is None and supervisor is None:
            desired = load_deployment(
                settings.repository, settings.deployment, settings.environments, settings.features
            )
        else:
            record = read_host_record(run_dir)
            settings, file, programs = record.settings, record.deployment_file, record.programs
            desired, routed = read_deployment(run_dir.deployment), read_deployment(run_dir.routing)
    except ConfigError as error:
        # Without a host the configuration's own check says what is wrong with it.
        problems += error.problems if up_pid is not None or supervisor is not None else ()
    return Target(
        settings=settings,
        deployment_file=file,
        programs=programs,
        desired=desired,
        routed=routed,
        up_pid=up_pid,
        supervisor_pid=supervisor,
        problems=tuple(problems),
    )
