"""What the hosts and balancers of a fleet say, against what the inventory says that should be.

Everything here is a function of documents: the fleet, as the action plugin `modelhost_fleet` gives it, for each host
what the module `modelhost_info` returned there, and for each balancer the same of `haproxy_server`. One that was not
asked, because a playbook was limited to others, has none, and is told as such; that is no drift.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

Document = Mapping[str, Any]
States = Mapping[str, Document | None]
"""By host or balancer: the result of its task; None or empty if it was not asked."""

GONE: Final = "cannot be reached"
NOT_ASKED: Final = "not asked"
_BACKEND: Final = "model_"
"""What the role `haproxy` puts before the name of a model."""
_MODELS_SHOWN: Final = 5
_HEAD: Final = ("HOST", "MODEL", "SHOULD RUN", "RUNS", "STATE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One version of a model on one host; or a host, its release, or a balancer as a whole."""

    host: str
    model: str
    wanted: str
    """Version and number of processes; empty if it should not be there."""
    actual: str
    state: str
    drift: str
    """What is not as it should be; empty if it is."""


# -- what differs -------------------------------------------------------------------------------------------------
def compare(
    fleet: Document,
    states: States,
    releases: Mapping[str, str] | None = None,
    balancers: States | None = None,
) -> list[Row]:
    """Go through every host of the fleet, in its order, and every version that should be there or is; then balancers.

    `releases` are those that hosts should have; of a host that is not in it, or with an empty one, any is right.
    """
    rows: list[Row] = []
    for host, wanted in fleet["hosts"].items():
        state = states.get(host) or {}
        rows.extend(_release(host, str((releases or {}).get(host) or ""), state))
        if not state.get("running") or state.get("reason"):  # it may run, and not say of its models
            rows.append(_silent(host, wanted, state))
            continue
        there = {(one["name"], one["version"]): one for one in state["models"]}
        rows.extend(
            _wanted(host, entry, there.pop((entry["name"], entry["version"]), None))
            for entry in wanted["models"].values()
        )
        rows.extend(_unwanted(host, one) for one in there.values())
    for balancer, said in (balancers or {}).items():
        rows.extend(_balancer(balancer, said or {}))
    return rows


def _silent(host: str, wanted: Document, state: Document) -> Row:
    return _unanswered(host, f"{len(wanted['models'])} models", state, "reason")


def _unanswered(host: str, wanted: str, state: Document, why: str = "msg") -> Row:
    """A host or balancer that says nothing."""
    if not state:
        return Row(host=host, model="", wanted=wanted, actual="", state=NOT_ASKED, drift="")
    reason = GONE if state.get("unreachable") else state.get(why) or state.get("msg") or "does not run"
    return Row(host=host, model="", wanted=wanted, actual="", state=reason, drift=f"{host}: {reason}")


def _release(host: str, wanted: str, state: Document) -> Iterator[Row]:
    """Another release than it should be; none if nothing is installed, or nobody knows.

    What a host says is the release that `current` links to. Playbooks change the link only together with a restart.
    """
    actual = state.get("release") or ""
    if wanted and actual and wanted != actual:
        drift = f"{host}: release {actual} runs, should be {wanted}"
        yield Row(host=host, model="(release)", wanted=wanted, actual=actual, state="", drift=drift)


def _wanted(host: str, entry: Document, there: Document | None) -> Row:
    name, version, counts = entry["name"], entry["version"], _counts(entry)
    wanted = f"{version}" if counts is None else f"{version} x {_range(counts)}"
    if there is None:
        drift = f"{host}: {name} version {version} does not run"
        return Row(host=host, model=name, wanted=wanted, actual="", state="", drift=drift)
    drift = _difference(entry, counts, there)
    if drift:
        drift = f"{host}: {name} version {version}{drift}{': ' if there['reason'] else ''}{there['reason']}"
    return Row(host=host, model=name, wanted=wanted, actual=_actual(there), state=there["state"], drift=drift)


def _difference(entry: Document, counts: range | None, there: Document) -> str:
    """What is not as it should be with a version that is there; empty if nothing."""
    if there["state"] != "serving":
        return f" is {there['state']}"
    if counts is not None and there["wanted"] not in counts:
        return f" should have {_range(counts)} processes, and has {there['wanted']}"
    # Of one that follows the load some are always about to be ready.
    enough = there["wanted"] if counts is None or len(counts) == 1 else min(there["wanted"], max(1, counts.start))
    if there["ready"] < enough:
        return f": {there['ready']} of {there['wanted']} processes are ready"
    if bool(entry["default"]) != bool(there["default"]):
        return f" should {'' if entry['default'] else 'not '}be the default"
    return ""


def _counts(entry: Document) -> range | None:
    """How many processes are right: a number, or any within bounds; None if that is not known."""
    if entry.get("processes") is not None:
        return range(entry["processes"], entry["processes"] + 1)
    if entry.get("min_processes") is not None and entry.get("max_processes") is not None:
        return range(entry["min_processes"], entry["max_processes"] + 1)
    return None


def _range(counts: range) -> str:
    return f"{counts.start}" if len(counts) == 1 else f"{counts.start} to {counts.stop - 1}"


def _unwanted(host: str, there: Document) -> Row:
    drift = f"{host}: {there['name']} version {there['version']} should not be there ({there['state']})"
    return Row(host=host, model=there["name"], wanted="", actual=_actual(there), state=there["state"], drift=drift)


def _actual(there: Document) -> str:
    return f"{there['version']} x {there['ready']}"


# -- balancers ----------------------------------------------------------------------------------------------------
def _balancer(balancer: str, state: Document) -> Iterable[Row]:
    """Every server that gets no requests because somebody drained it, or because its checks fail.

    Those of `haproxy_drained` have a weight of 0 and are not drained in this sense: it is what the inventory wants.
    """
    if state.get("unreachable") or state.get("servers") is None:
        return [_unanswered(balancer, "", state)]
    out: dict[tuple[str, str], list[str]] = {}
    for one in state["servers"]:
        what = one["state"] if one["state"] != "ready" else "" if one["up"] else "down"
        if what:
            out.setdefault((one["server"], what), []).append(one["backend"])
    servers = f"{len(state['servers'])} servers"
    if not out:
        return [Row(host=balancer, model="", wanted=servers, actual=servers, state="", drift="")]
    return [_out(balancer, server, what, backends) for (server, what), backends in out.items()]


def _out(balancer: str, server: str, what: str, backends: Sequence[str]) -> Row:
    models = _models(backends)
    said = f"is down for {models}" if what == "down" else f"gets no requests for {models} ({what})"
    drift = f"{balancer}: {server} {said}"
    return Row(host=balancer, model=models, wanted=server, actual="", state=what, drift=drift)


def _models(backends: Sequence[str]) -> str:
    """The models of backends; the backend itself where it is no model's, if there are no others."""
    names = [one.removeprefix(_BACKEND) for one in backends if one.startswith(_BACKEND)] or backends
    more = f" and {len(names) - _MODELS_SHOWN} more" if len(names) > _MODELS_SHOWN else ""
    return ", ".join(names[:_MODELS_SHOWN]) + more


# -- for playbooks ------------------------------------------------------------------------------------------------
def report(
    fleet: Document,
    states: States,
    releases: Mapping[str, str] | None = None,
    balancers: States | None = None,
) -> dict[str, Any]:
    """Rows, a table of them as lines, and all drift (see `compare`)."""
    rows = compare(fleet, states, releases, balancers)
    return {
        "rows": [asdict(row) for row in rows],
        "lines": table(rows),
        "drift": [row.drift for row in rows if row.drift],
    }


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of equal columns; what differs is marked at its end."""
    cells = [_HEAD, *((row.host, row.model, row.wanted or "-", row.actual or "-", row.state) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], *(f"{line}  <-" if row.drift else line for line, row in zip(lines[1:], rows, strict=True))]
