"""What should run on this host: which versions of which models, with how many processes each."""

from __future__ import annotations

from pathlib import Path

import msgspec

from host.protocol.errors import ConfigError
from host.protocol.messages import Limits
from host.protocol.types import Signature


class DeployedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one model, as it should run."""

    name: str
    version: str
    processes: int
    package: str
    """The package's directory, absolute."""
    platform: str
    signature: Signature
    limits: Limits
    default: bool = True
    """Whether paths without a version mean this one; exactly one version of a model has it."""


class Deployment(msgspec.Struct, frozen=True):
    """Everything that should run, in a stable order."""

    models: tuple[DeployedModel, ...] = ()


def write_deployment(path: Path, deployment: Deployment) -> None:
    """Write the deployment in force, atomically."""
    part = path.with_name(f".{path.name}.new")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(deployment), indent=1) + b"\n")
    part.replace(path)


def read_deployment(path: Path) -> Deployment:
    """Read what `write_deployment` wrote. Raises `ConfigError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Deployment)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not a deployment in force: {error}") from error
