"""Filters for roll-outs: which models of a host are well, and why it is not ready."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_SAID_MAX_CHARS: Final = 2000
"""Of what a service said, in a message."""


def well(state: Mapping[str, Any]) -> list[str]:
    """`NAME@VERSION` of what is served by all of its processes, of a result of `modelhost_info`."""
    models = state.get("models") or ()
    return [f"{one['name']}@{one['version']}" for one in models if _is_well(one)]


def why_not_ready(state: Mapping[str, Any], journal: Iterable[str] = ()) -> str:
    """What keeps a host from being ready, by a result of `modelhost_info` and the end of its service's journal.

    `journal`: an entry a line, as `journalctl --output=json` writes them.
    """
    if not state.get("running"):
        said = "; ".join(_said_last(journal))
        reason = state.get("reason") or "it does not run"
        return f"modelhost does not run: its service said last: {said[-_SAID_MAX_CHARS:]}" if said else str(reason)
    lacking = "; ".join(_lacking(one) for one in state.get("models") or () if not _is_well(one))
    unknown = state.get("reason") or "not everything is ready; on the host, `modelhost status` says what is missing"
    return lacking or str(unknown)


def _said_last(journal: Iterable[str]) -> list[str]:
    """The messages of a service's last start that said anything, each once; not those of one before, which ended."""
    messages: dict[str, list[str]] = {}
    start = ""
    for line in journal:
        entry = json.loads(line)
        message = entry.get("MESSAGE")
        # Bytes that are no text are a list of numbers, and what is too long is null.
        if isinstance(message, str) and message.strip():
            start = str(entry.get("_SYSTEMD_INVOCATION_ID"))
            messages.setdefault(start, []).append(message.strip())
    return list(dict.fromkeys(messages.get(start, [])))


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
