"""Settings and programs of the host that runs: `up` writes them for control, whatever files and flags they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from host.config.files import write_atomically
from host.config.run_dir import RunDirectory
from host.config.settings import HostSettings, resolve_settings
from host.placement import Topology
from host.protocol.errors import ConfigError
from supervisor_conf.render import Programs


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `modelhost up` was started with."""

    settings: HostSettings
    programs: Programs
    deployment_file: Path
    """What says what runs, there or not: without it that is the newest version of every model."""
    topology: Topology
    """What the host may use: control itself may use less."""


def write_host_record(run_dir: RunDirectory, record: HostRecord) -> None:
    """Write it, atomically."""
    write_atomically(run_dir.host, msgspec.json.encode(record, enc_hook=_path_to_text))


def read_host_record(run_dir: RunDirectory) -> HostRecord:
    """Read what `write_host_record` wrote, of this release or another. Raises `ConfigError`.

    A host goes on running while another release takes over: settings that the old one had not are as by default.
    """
    try:
        raw = msgspec.json.decode(run_dir.host.read_bytes(), type=dict[str, Any])
        settings, _ = resolve_settings({}, None, {}, {}, run_dir.root)
        defaults = msgspec.to_builtins(settings, enc_hook=_path_to_text)
        raw["settings"] = defaults | msgspec.convert(raw.get("settings", {}), dict[str, Any])
        return msgspec.convert(raw, HostRecord, dec_hook=_text_to_path)
    except OSError as error:
        raise ConfigError(f"{run_dir.host}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{run_dir.host}: not the record of a host: {error}") from error


def _path_to_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _text_to_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
