"""What the doctor finds, and the groups that it looks at, in their order. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec


class Level(enum.Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """The host serves; something should be looked at."""
    FAIL = "fail"
    """Something does not work, or would not."""


class Group(enum.Enum):
    """What is looked at together."""

    CONFIGURATION = "configuration"
    ENVIRONMENTS = "environments"
    PORTS = "ports"
    ISOLATION = "isolation"
    LIMITS = "limits"
    SOCKETS = "sockets"
    CLOCK = "clock"
    DISK = "disk"
    MEMORY = "memory"
    SUPERVISORD = "supervisord"
    CONTROL = "control"
    FRONTS = "fronts"
    STORES = "stores"
    MODELS = "models"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: Group
    subject: str
    """Where: a file, a process, a model version, a port."""
    level: Level
    what: str
    """What is so; of what is wrong also what was expected, where that is not plain."""
    what_to_do: str = ""
    """Empty if it is as it should be."""


def ok(check: Group, subject: str, what: str) -> Finding:
    """It is as it should be."""
    return Finding(check=check, subject=subject, level=Level.OK, what=what)


def warn(check: Group, subject: str, what: str, what_to_do: str) -> Finding:
    """It should be looked at."""
    return Finding(check=check, subject=subject, level=Level.WARN, what=what, what_to_do=what_to_do)


def fail(check: Group, subject: str, what: str, what_to_do: str) -> Finding:
    """It does not work."""
    return Finding(check=check, subject=subject, level=Level.FAIL, what=what, what_to_do=what_to_do)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst of them; ok of none."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)
