"""A filter for roll-outs: which models of a host are well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def well(state: Mapping[str, Any]) -> list[str]:
    """`NAME@VERSION` of what is served by all of its processes, of a result of `modelhost_info`."""
    models = state.get("models") or ()
    return [
        f"{one['name']}@{one['version']}"
        for one in models
        if one["state"] == "serving" and one["ready"] >= one["wanted"]
    ]


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Names in templates."""
        return {"modelhost_well": well}
