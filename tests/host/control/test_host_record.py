"""What `up` wrote is read by control, of the same release or of another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from host.config.run_dir import RunDirectory
from host.config.settings import resolve_settings
from host.control.host_record import HostRecord, read_host_record, write_host_record
from host.placement import Cpu, Topology
from host.protocol.errors import ConfigError
from supervisor_conf.render import Programs


@pytest.fixture
def record(tmp_path: Path) -> HostRecord:
    settings, _ = resolve_settings({"port": 9090, "grace_s": 7}, None, {}, {}, tmp_path)
    programs = Programs(host_python=Path("/p"), model_python=Path("/m"), code_root=Path("/c"))
    topology = Topology(cpus=(Cpu(number=0, core=0, node=0),), memory_bytes=1 << 30)
    return HostRecord(settings=settings, programs=programs, deployment_file=tmp_path / "d.toml", topology=topology)


def test_it_is_read_as_it_was_written(tmp_path: Path, record: HostRecord) -> None:
    write_host_record(RunDirectory(tmp_path), record)
    assert read_host_record(RunDirectory(tmp_path)) == record


def rewritten(tmp_path: Path, record: HostRecord, change: Callable[[dict[str, Any]], object]) -> None:
    run_dir = RunDirectory(tmp_path)
    write_host_record(run_dir, record)
    document = json.loads(run_dir.host.read_bytes())
    change(document)
    run_dir.host.write_text(json.dumps(document))


def test_settings_that_an_older_release_had_not_are_as_by_default(tmp_path: Path, record: HostRecord) -> None:
    rewritten(
        tmp_path, record, lambda document: [document["settings"].pop(name) for name in ("admin_port", "log_format")]
    )
    assert read_host_record(RunDirectory(tmp_path)) == record


def test_settings_that_a_newer_release_has_are_left_alone(tmp_path: Path, record: HostRecord) -> None:
    rewritten(tmp_path, record, lambda document: document["settings"].update(something_new=1))
    assert read_host_record(RunDirectory(tmp_path)) == record


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 1}', '{"settings": {"port": "x"}}'])
def test_what_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    run_dir = RunDirectory(tmp_path)
    run_dir.host.write_text(text)
    with pytest.raises(ConfigError, match=r"host\.json: not the record of a host"):
        read_host_record(run_dir)


def test_a_record_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"host\.json: cannot be read"):
        read_host_record(RunDirectory(tmp_path))
