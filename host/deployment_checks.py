"""What keeps a deployment from running on a host, as far as that can be known before anything starts."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

from host.config.deployment import Deployment, socket_path_problems
from host.config.settings import HostSettings
from host.isolation.planning import writable_directories
from host.manifest import checksum_problems
from supervisor_conf.render import open_files


def deployment_problems(settings: HostSettings, deployment: Deployment) -> list[str]:
    """What keeps a deployment from running on a host with these settings, but for its CPUs and memory."""
    return [
        *checksum_problems(deployment),
        *socket_path_problems(deployment, settings.run_dir),
        *environment_problems(deployment),
        *_open_files_problems(settings, deployment),
        *_writable_problems(settings, deployment),
    ]


def environment_problems(deployment: Deployment) -> list[str]:
    """Every model whose environment is not built: that is done before anything runs, and never at load."""
    return [
        f"{model.name} version {model.version}: its environment is not built; "
        f"build it with: modelhost build {model.name}"
        for model in deployment.models
        if model.python is not None and not Path(model.python).exists()
    ]


def _writable_problems(settings: HostSettings, deployment: Deployment) -> Iterable[str]:
    """Directories of `sandbox.writable` that are none, hold what no model may write, or lie in one another."""
    seen: list[Path] = []
    for model in deployment.models:
        for path in writable_directories(model):
            where = f"{model.name} version {model.version}: sandbox.writable: {path}"
            resolved = path.resolve()
            # Whoever writes to a directory can put a link where another one's was.
            other = next((one for one in seen if one.is_relative_to(resolved) or resolved.is_relative_to(one)), None)
            seen.append(resolved)
            if not path.is_dir():
                yield f"{where}: expected a directory, found none"
            elif other is not None:
                yield f"{where}: expected a directory apart from every other one, received one that shares {other}"
            elif resolved != path:
                yield f'{where}: expected the directory\'s own path, without links and "..", which is {resolved}'
            elif settings.run_dir.resolve().is_relative_to(resolved) or Path(model.package).is_relative_to(resolved):
                yield f"{where}: expected a directory of its own, received one that holds the package or run_dir"


def _open_files_problems(settings: HostSettings, deployment: Deployment) -> list[str]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files(settings, deployment)
    if os.geteuid() == 0 or hard == resource.RLIM_INFINITY or needed <= hard:
        return []
    return [
        f"max_connections: {settings.max_connections} connections and the workers need {needed} open files, "
        f"this user may open {hard} (ulimit -Hn)"
    ]
