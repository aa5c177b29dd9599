"""W3C Trace Context (https://www.w3.org/TR/trace-context/): what the two headers say. Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NamedTuple

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_SAMPLED: Final = 1
_TRACESTATE_MAX_CHARS: Final = 512
"""What everybody has to pass on; longer ones may be dropped (3.3.1.5)."""

_MEMBERS_MAX: Final = 32
_MEMBER: Final = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)


class TraceParent(NamedTuple):
    """Who asked, in which trace."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits: of the caller's span."""
    sampled: bool

    def __str__(self) -> str:
        """Write the header's value, of version 00."""
        return f"00-{self.trace_id}-{self.span_id}-{self.sampled:02x}"


@lru_cache(maxsize=16)
def read_traceparent(value: str) -> TraceParent | None:
    """Read a `traceparent`; None if it is none, and then there is no trace.

    Of a version above 00 only the parts that 00 has are read, as the standard says.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def read_tracestate(value: str) -> str:
    """A `tracestate` in its shortest form; empty if it is none, or more than has to be passed on."""
    members = [member.strip(" \t") for member in value.split(",")]
    members = [member for member in members if member]
    text = ",".join(members)
    keys = {member.partition("=")[0] for member in members}
    if len(text) > _TRACESTATE_MAX_CHARS or len(members) > _MEMBERS_MAX or len(keys) < len(members):
        return ""
    return text if all(_MEMBER.fullmatch(member) for member in members) else ""


def trace_id_of(traceparent: str) -> str:
    """The trace's id; empty if there is none."""
    parent = read_traceparent(traceparent) if traceparent else None
    return parent.trace_id if parent is not None else ""
