"""Documents of a host's state, for tests of what is made of them."""

from __future__ import annotations

from typing import Any

import msgspec

from host.control.status import (
    DeathKind,
    ExitStatus,
    HostStatus,
    ModelStatus,
    SlotStatus,
    Traffic,
    Usage,
    VersionState,
)
from host.protocol.latency import LatencyHistogram

NOW = 1000.0


def slot(name: str = "churn.v3:0", pid: int = 11, **more: Any) -> SlotStatus:
    fields: dict[str, Any] = {
        "state": "RUNNING" if pid else "STARTING",
        "ready": pid > 0,
        "since": 990.0,
        "uptime_s": 10.0 if pid else 0.0,
        "restarts": 0,
        "last_exit": None,
    }
    return SlotStatus(name=name, pid=pid, **(fields | more))


def death(at: float = 999.0, pid: int = 11, reason: str = "killed by SIGKILL") -> ExitStatus:
    return ExitStatus(at=at, pid=pid, kind=DeathKind.SIGNAL, reason=reason, log=("the last line",))


def usage(memory_bytes: int = 50, limit_bytes: int = 100, cpu_s: float = 1.0) -> Usage:
    return Usage(memory_bytes=memory_bytes, memory_limit_bytes=limit_bytes, cpu_s=cpu_s)


def traffic(answered: int = 0, failed: int = 0, waiting: int = 0, times_ms: tuple[float, ...] = ()) -> Traffic:
    histogram = LatencyHistogram()
    for time_ms in times_ms:
        histogram.add(int(time_ms * 1e6))
    return Traffic(answered=answered, failed=failed, waiting=waiting, latency=histogram.read())


def model(name: str = "churn", version: str = "3", **more: Any) -> ModelStatus:
    slots = more.pop("slots", (slot(f"{name}.v{version}:0"),))
    fields: dict[str, Any] = {
        "default": True,
        "wanted": len(slots),
        "ready": sum(one.ready for one in slots),
        "state": VersionState.SERVING,
    }
    return ModelStatus(name=name, version=version, slots=tuple(slots), **(fields | more))


def host(*models: ModelStatus, **more: Any) -> HostStatus:
    fields: dict[str, Any] = {
        "ready": all(one.ready >= one.wanted for one in models),
        "wanted": sum(one.wanted for one in models),
        "ready_processes": sum(one.ready for one in models),
        "host": (slot("front:0", 5), slot("control", 6)),
        "unwanted": (),
    }
    return HostStatus(models=models, **(fields | more))


replace = msgspec.structs.replace
