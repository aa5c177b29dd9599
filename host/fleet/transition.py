"""A fleet on its way from what it is to what it should be: what holds while some have changed and others have not.

Everything here is a function of documents: the fleet, as the action plugin `modelhost_fleet` gives it, and deployments.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from typing import Any

from host.config.deployment_file import entries_text
from host.fleet.actual import Document


def meanwhile(fleet: Document, host: str, present: str) -> str:
    """A host's deployment with the models that leave it: they go on for now, with all that is said of them.

    `present` is the deployment that it has. Versions of models that stay are the host's own business: it serves the
    old one until the new one is ready. A text that cannot be read was never in force, and tells nothing.
    """
    wanted: str = fleet["hosts"][host]["deployment"]
    stay = _entries(wanted)
    go = [entry for entry in _entries(present) if entry["name"] not in {one["name"] for one in stay}]
    return entries_text([*stay, *go]) if go else wanted


def stranded(fleet: Document, deployments: Mapping[str, str], taking_part: Collection[str]) -> list[str]:
    """Models that leave a host, and none of whose new hosts takes part: balancers would send requests to nobody.

    `deployments` are those that hosts have meanwhile, by host.
    """
    said = []
    for host, deployment in sorted(deployments.items()):
        for name in sorted({entry["name"] for entry in _entries(deployment)}):
            hosts = fleet["models"].get(name, {}).get("hosts", {})
            if hosts and host not in hosts and not set(hosts) & set(taking_part):
                said.append(f"{name} leaves {host}, and {', '.join(sorted(hosts))}, where it should run, is left out")
    return said


def between(before: Document, after: Document, model: str) -> dict[str, Any]:
    """A fleet for balancers while hosts get another version of a model: what is right for the old one and the new one.

    Requests are sent again only if both allow it, and both have the time that they need.
    """
    old, new = before["models"][model], after["models"][model]
    times = (old["timeout_ms"], new["timeout_ms"])
    both = {"retry": old["retry"] and new["retry"], "timeout_ms": None if None in times else max(times)}
    return {**before, "models": {**before["models"], model: {**old, **both}}}


def _entries(text: str) -> list[dict[str, Any]]:
    """Every `[[models]]` with a name."""
    try:
        models = tomllib.loads(text).get("models")
    except tomllib.TOMLDecodeError:
        return []
    entries = models if isinstance(models, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
