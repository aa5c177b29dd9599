"""What an inventory's variables say of each host, beside its models. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from host.config.setting_values import is_plain_text
from host.protocol.schema import described, parse_bytes

VARIABLES: Final = (
    "modelhost_address",
    "modelhost_port",
    "modelhost_zone",
    "modelhost_fronts",
    "modelhost_host_memory",
    "ansible_host",
)
"""What is read of a host, and no more."""

FACTS: Final = ("memtotal_mb",)
"""Facts that are used where they are known; nothing that runs depends on them."""

PORT: Final = 8080
FRONTS: Final = 2
"""As the role `modelhost` has them."""
_FRONTS_MAX: Final = 64
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - what is listened on is no place to connect to
_TEXT_MAX_CHARS: Final = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetHost:
    """What the inventory says of a host beside its models."""

    name: str
    address: str
    port: int = PORT
    zone: str = ""
    fronts: int = FRONTS
    memory_bytes: int | None = None
    """None: not known, and not checked."""
    memory_source: str = ""
    """The variable that says so."""


def read_fleet_host(
    name: str, variables: Mapping[str, Any], facts: Mapping[str, Any], problems: list[str]
) -> FleetHost:
    """Read a host's variables; what is wrong is added to `problems`, and the default taken."""

    def text(key: str, default: str) -> str:
        value = variables.get(key)
        if value is None or value == "":
            return default
        if not isinstance(value, str) or not is_plain_text(value) or len(value) > _TEXT_MAX_CHARS:
            problems.append(f"host {name}: {key}: expected a text of one line, received {described(value)}")
            return default
        return value

    def number(key: str, default: int, maximum: int) -> int:
        value = variables.get(key, default)
        if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
            value = int(value)  # what -e and an INI inventory say is a text
        if type(value) is not int or not 1 <= value <= maximum:
            expected = f"a whole number >= 1 and <= {maximum}"
            problems.append(f"host {name}: {key}: expected {expected}, received {described(value)}")
            return default
        return value

    address = text("modelhost_address", "")
    if address in ("", *_EVERYWHERE):
        address = text("ansible_host", name)
    memory_bytes, source = _memory(name, variables, facts, problems)
    return FleetHost(
        name=name,
        address=address,
        port=number("modelhost_port", PORT, 65535),
        zone=text("modelhost_zone", ""),
        fronts=number("modelhost_fronts", FRONTS, _FRONTS_MAX),
        memory_bytes=memory_bytes,
        memory_source=source,
    )


def _memory(
    name: str, variables: Mapping[str, Any], facts: Mapping[str, Any], problems: list[str]
) -> tuple[int | None, str]:
    """How much memory a host has, and what says so."""
    said = variables.get("modelhost_host_memory")
    if said is not None and said != "":
        size = said if type(said) is int else parse_bytes(said) if isinstance(said, str) else None
        if size is None or size <= 0:
            expected = 'a size such as "64GiB"'
            problems.append(f"host {name}: modelhost_host_memory: expected {expected}, received {described(said)}")
        return size, "modelhost_host_memory"
    found = facts.get("memtotal_mb")
    return (found << 20, "the fact memtotal_mb") if type(found) is int else (None, "")
