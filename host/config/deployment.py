"""What should run on this host: which versions of which models, with how many processes each."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from host.config.deployment_file import Entry, read_entries
from host.config.entry_checks import defaults_of, duplicate_problems, natural_key, scale_of, traffic_problems
from host.config.environments import environment_python, need_of
from host.config.features import Features, feature_problems, read_features
from host.config.files import write_atomically
from host.config.judgement import Judge
from host.config.run_dir import SOCKET_PATH_MAX_BYTES, RunDirectory, group_name
from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.package import MODEL_FILE, Package, Resources, Sandbox, read_package
from host.protocol.types import Signature

SHADOW_TOLERANCE: Final = 1e-6
"""How far a shadow's numbers may be from the original's, relative to them: another order of summing does that much."""

_PID_DIGITS: Final = 7
"""Digits of the largest pid (PID_MAX_LIMIT is 4,194,304): supervisord binds `supervisor.sock.<pid>` first."""


class DeployedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model, as it should run."""

    name: str
    version: str
    processes: int
    """How many should run; of a scaled model, to begin with."""
    min_processes: int = 0
    max_processes: int = 0
    """Bounds of how many run as the load asks for; both 0: always `processes`."""
    slots: int = 0
    """How many supervisord is told of; 0: as many as processes."""
    package: str
    """The package's directory, absolute."""
    platform: str
    signature: Signature
    limits: Limits
    resources: Resources = Resources()
    sandbox: Sandbox = Sandbox()
    python: str | None = None
    """The interpreter of its own environment, absolute; None: it has none."""
    default: bool = True
    """Whether paths without a version mean this one; exactly one version of a model has it."""
    canary_percent: int = 0
    """Of the requests without a version: this one answers so many in place of the default."""
    shadow_percent: int = 0
    """Of the requests without a version that the default answers: so many are copied to this one."""
    shadow_tolerance: float = SHADOW_TOLERANCE
    judge: Judge | None = None
    """Of a canary: by what it is rolled back, or promoted, without anybody."""
    sticky_header: str = ""
    """Of a default, in lower case: requests with the same value of it are answered by the same version."""

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.name, self.version

    @property
    def is_beside(self) -> bool:
        """Whether it serves beside the default, which goes on without it: as a canary or a shadow."""
        return bool(self.canary_percent or self.shadow_percent)

    @property
    def group(self) -> str:
        """supervisord's name of it: `churn.v3`."""
        return group_name(self.name, self.version)

    @property
    def autoscaled(self) -> bool:
        """Whether the load says how many run."""
        return self.max_processes > 0

    @property
    def declared(self) -> int:
        """Slots that supervisord knows, whether they run or not."""
        return max(self.slots, self.processes, self.max_processes)

    def programs(self) -> list[str]:
        """The names of the processes that should run: `churn.v3:0`."""
        return [f"{self.group}:{slot}" for slot in range(self.processes)]


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """Processes of a model version that are to be started again."""

    pids: dict[int, int]
    """Slot to the process that another one is to take the place of."""
    in_place: bool = False
    """Without one process more meanwhile."""


class Deployment(msgspec.Struct, frozen=True):
    """Everything that should run, in a stable order."""

    models: tuple[DeployedModel, ...] = ()
    features: Features = Features()
    """What models' inputs may be fetched from; without views no feature service runs."""
    generation: int = 0
    """Counts the changes since the host started."""
    draining: bool = False
    """The fronts say that they are not ready, and serve: for whoever takes the host out of a load balancer."""
    restarts: dict[str, Restart] = {}
    """By group; those whose processes are gone are done."""


def write_deployment(path: Path, deployment: Deployment) -> None:
    """Write what should run, or what is served, atomically."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(deployment), indent=1) + b"\n")


def read_deployment(path: Path) -> Deployment:
    """Read what `write_deployment` wrote. Raises `ConfigError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Deployment)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not a deployment: {error}") from error


def load_deployment(
    repository: Path, deployment_file: Path | None, environments: Path, features_file: Path | None = None
) -> Deployment:
    """Read what should run, every package included. Raises `ConfigError` with every problem of all of them.

    Without a file: the highest version of every model in the repository, with the package's own number of
    processes. Versions compare naturally: 10 is higher than 9. `environments`: where the models' own are, built or not.
    """
    problems: list[str] = []
    features = Features()
    if features_file is not None:
        try:
            features = read_features(features_file)
        except ConfigError as error:
            problems.extend(error.problems)
    entries = _found_models(repository) if deployment_file is None else read_entries(deployment_file, problems)
    chosen: list[tuple[Entry, Package, Path]] = []
    pythons: list[str | None] = []
    for entry in entries:
        try:
            directory = _package_directory(repository, entry)
            package = read_package(directory)
            need = need_of(package, directory)
            pythons.append(None if need is None else str(environment_python(environments, need).absolute()))
            chosen.append((entry, package, directory))
        except ConfigError as error:
            problems.extend(error.problems)
    resolved = [replace(entry, version=package.version) for entry, package, _ in chosen]
    problems += duplicate_problems(resolved)
    if not problems:
        for _, package, directory in chosen:
            problems += feature_problems(str(directory / MODEL_FILE), package.signature, features)
    scales = [scale_of(entry, package.scale, problems) for entry, package, _ in chosen]
    defaults = defaults_of(resolved, problems)
    problems += traffic_problems(resolved, defaults)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return Deployment(
        tuple(
            DeployedModel(
                name=package.name,
                version=package.version,
                processes=scale.processes,
                min_processes=scale.min_processes,
                max_processes=scale.max_processes,
                slots=scale.slots,
                package=str(directory.absolute()),
                platform=package.platform,
                signature=package.signature,
                limits=package.limits,
                resources=_resources(entry, package.resources),
                sandbox=package.sandbox,
                python=python,
                default=default,
                canary_percent=entry.canary_percent,
                shadow_percent=entry.shadow_percent,
                shadow_tolerance=SHADOW_TOLERANCE if entry.shadow_tolerance is None else entry.shadow_tolerance,
                judge=entry.judge,
                sticky_header=entry.sticky_header,
            )
            for (entry, package, directory), python, default, scale in zip(
                chosen, pythons, defaults, scales, strict=True
            )
        ),
        features,
    )


def socket_path_problems(deployment: Deployment, run_dir: Path) -> list[str]:
    """Name every socket whose path is too long for the kernel, the name that it is first bound under included."""
    paths = RunDirectory(run_dir)
    bound = [paths.supervisor_socket.with_name(f"{paths.supervisor_socket.name}.{'9' * _PID_DIGITS}")]
    for model in deployment.models:
        socket = paths.worker_socket(group_name(model.name, model.version), model.declared - 1)
        bound.append(socket.with_name(f".{socket.name}.new"))
    excess, longest = max((len(os.fsencode(path)) - SOCKET_PATH_MAX_BYTES, path) for path in bound)
    if excess <= 0:
        return []
    room = len(os.fsencode(run_dir)) - excess
    advice = f"a run_dir of at most {room} bytes" if room > 0 else "a shorter model name or version"
    return [
        f"run_dir: expected {advice}, because the path of a Unix socket holds {SOCKET_PATH_MAX_BYTES} bytes, "
        f"received {run_dir} ({len(os.fsencode(run_dir))} bytes), which makes {longest}"
    ]


def model_directories(repository: Path) -> list[Path]:
    """The repository's models, by name. Raises `ConfigError` if it is missing or empty."""
    advice = f"make a first package with: modelhost new my_model --runtime python --directory {repository}"
    try:
        found = sorted(path for path in repository.iterdir() if path.is_dir() and _is_package_name(path.name))
    except FileNotFoundError:
        raise ConfigError(
            f"repository: expected a directory of model packages, found no {repository}; {advice}"
        ) from None
    except OSError as error:
        raise ConfigError(f"repository: {repository}: cannot be read: {error.strerror}") from error
    if not found:
        raise ConfigError(f"repository: expected model packages in {repository}, found none; {advice}")
    return found


def version_directories(model: Path) -> list[Path]:
    """A model's versions, the highest last. Raises `ConfigError` if there is none."""
    try:
        found = [path for path in model.iterdir() if path.is_dir() and _is_package_name(path.name)]
    except OSError as error:
        raise ConfigError(f"{model}: cannot be read: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{model}: expected a directory for each version, with {MODEL_FILE}, found none")
    return sorted(found, key=lambda path: natural_key(path.name))


def package_directories(repository: Path) -> list[Path]:
    """Every version of every model, by name and age. Raises `ConfigError` if the repository cannot be read.

    Without one, unlike a host that is to serve some, a repository is just empty.
    """
    try:
        models = sorted(path for path in repository.iterdir() if path.is_dir() and _is_package_name(path.name))
        versions = [[path for path in model.iterdir() if path.is_dir()] for model in models]
    except OSError as error:
        raise ConfigError(f"repository: {error.filename}: cannot be read: {error.strerror}") from error
    return [
        path
        for found in versions
        for path in sorted(found, key=lambda path: natural_key(path.name))
        if _is_package_name(path.name)
    ]


def _is_package_name(name: str) -> bool:
    return not name.startswith((".", "_")) and name != "lost+found"


def _found_models(repository: Path) -> list[Entry]:
    return [Entry(where=str(repository), name=path.name) for path in model_directories(repository)]


def _resources(entry: Entry, package: Resources) -> Resources:
    """The package's, but for what the deployment says."""
    return Resources(
        memory_bytes=entry.memory_bytes or package.memory_bytes,
        cpus=entry.cpus or package.cpus,
        threads=entry.threads or package.threads,
    )


def _package_directory(repository: Path, entry: Entry) -> Path:
    model = repository / entry.name
    if entry.name in (".", "..") or "/" in entry.name or not model.is_dir():
        known = ", ".join(path.name for path in model_directories(repository))
        raise ConfigError(f'{entry.where}.name: expected a model of {repository}: {known}, received "{entry.name}"')
    versions = version_directories(model)
    if entry.version is None:
        return versions[-1]
    for directory in versions:
        if directory.name == entry.version:
            return directory
    known = ", ".join(path.name for path in versions)
    raise ConfigError(f'{entry.where}.version: expected a version of {entry.name}: {known}, received "{entry.version}"')
