"""Filters for roll-outs: which models of a host are well, and why it is not ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_SAID_MAX_CHARS: Final = 2000
"""Of what a service said, in a message."""


def well(state: Mapping[str, Any]) -> list[str]:
    """`NAME@VERSION` of what is served by all of its processes, of a result of `modelhost_info`."""
    models = state.get("models") or ()
    return [f"{one['name']}@{one['version']}" for one in models if _is_well(one)]


def why_not_ready(state: Mapping[str, Any], said: Iterable[str] = ()) -> str:
    """What keeps a host from being ready, by a result of `modelhost_info` and the last lines of its service."""
    if not state.get("running"):
        lines = "; ".join(dict.fromkeys(line.strip() for line in said if line.strip()))
        reason = state.get("reason") or "it does not run"
        return f"modelhost does not run: its service said last: {lines[-_SAID_MAX_CHARS:]}" if lines else str(reason)
    lacking = "; ".join(_lacking(one) for one in state.get("models") or () if not _is_well(one))
    return lacking or "not everything is ready; on the host, `modelhost status` says what is missing"


def _is_well(model: Mapping[str, Any]) -> bool:
    return bool(model["state"] == "serving" and model["ready"] >= model["wanted"])


def _lacking(model: Mapping[str, Any]) -> str:
    text = f"{model['name']} version {model['version']} is {model['state']}"
    text += f", {model['ready']} of {model['wanted']} processes ready"
    return f"{text}: {model['reason']}" if model.get("reason") else text


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Names in templates."""
        return {"modelhost_well": well, "modelhost_why_not_ready": why_not_ready}
