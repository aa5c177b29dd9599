#!/usr/bin/python
"""Whether a model version on a host is well: one golden case, then what becomes of its requests for a while."""

from __future__ import annotations

DOCUMENTATION = r"""
module: modelhost_gate
short_description: Watch a model version on a host, and fail if it is not as good as it should be
description:
  - With O(smoke), first has C(modelhost doctor) send this version its first golden case, through the host's front, and
    ask every one of its processes.
  - Then watches it for O(soak_s) and fails as soon as one of its processes dies, it is not served any more, or too many
    of its requests fail; at the end also if it is too slow or not all of its processes are ready.
  - Requests, failures and times are those of the host's fronts, counted one by one. Changes nothing.
options:
  model:
    description:
      - The model.
    type: str
    required: true
  version:
    description:
      - The version. Without it, the one that answers requests without a version when the task begins.
    type: str
  soak_s:
    description:
      - So long it is watched, in seconds. With 0 it is looked at once.
    type: float
    default: 0
  smoke:
    description:
      - Whether to ask it before it is watched.
    type: bool
    default: true
  min_requests:
    description:
      - Fewer say nothing of how many fail and how fast it is.
    type: int
    default: 100
  min_requests_required:
    description:
      - Whether fewer requests are a failure. Otherwise the version passes with a note, unless all of them failed.
    type: bool
    default: false
  max_failed_percent:
    description:
      - So much more of its requests may fail than of the reference's, in percent points.
    type: float
    default: 1.0
  max_slowdown:
    description:
      - So many times the reference's may its p90 be. Less than a millisecond of difference is never too slow.
    type: float
    default: 2.0
  reference:
    description:
      - What it is compared with, as RV(window) of this module or an entry of C(models) of M(modelhost_info) has it.
      - Only C(failed_percent) and C(p90_ms) are used. Without them none of the reference's requests failed, and nothing
        is too slow.
    type: dict
  measure_only:
    description:
      - Do not judge how many requests fail and how fast it is. What comes out is somebody else's O(reference).
    type: bool
    default: false
  timeout_s:
    description:
      - How long each question to the host may take, in seconds.
    type: float
    default: 90
  command:
    description:
      - Modelhost's command on the host.
    type: path
    default: /opt/modelhost/current/bin/modelhost
  config:
    description:
      - The host's settings file.
    type: path
    default: /etc/modelhost/modelhost.toml
attributes:
  check_mode:
    support: full
    description: Skipped, as what it would watch has not been deployed.
author:
  - The modelhost authors
"""

EXAMPLES = r"""
- name: How the old version does
  modelhost_gate:
    model: churn
    soak_s: 60
    smoke: false
    measure_only: true
  register: before

- name: One request, before the balancer sends any
  modelhost_gate:
    model: churn
    version: "4"

- name: Five minutes under load
  modelhost_gate:
    model: churn
    version: "4"
    soak_s: 300
    reference: "{{ before.window }}"
"""

RETURN = r"""
verdict:
  description: C(passed), C(failed), or C(measured) with O(measure_only).
  type: str
  returned: always
reason:
  description: What the verdict rests on.
  type: str
  returned: always
version:
  description: The version that was watched.
  type: str
  returned: always
notes:
  description: What is worth knowing and no failure.
  type: list
  elements: str
  returned: always
smoke:
  description: What C(modelhost doctor) found. Empty without O(smoke).
  type: list
  elements: dict
  returned: always
window:
  description: What happened while it was watched. None if it was not.
  type: dict
  returned: always
  contains:
    watched_s: {description: How long., type: float, returned: always}
    requests: {description: Requests that ended., type: int, returned: always}
    failed: {description: Those of them that failed, with a status of 500 or more., type: int, returned: always}
    failed_percent: {description: Their share. None without requests., type: float, returned: always}
    p50_ms: {description: Half of the answers took at most so long. None without any., type: float, returned: always}
    p90_ms: {description: As above., type: float, returned: always}
    p99_ms: {description: As above., type: float, returned: always}
    deaths: {description: How often its processes died., type: int, returned: always}
"""

import time
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.modelhost_client import (
    Counts,
    Failure,
    common_arguments,
    counts_of,
    counts_since,
    document_of,
    merged,
    numbers,
    read_status,
    run,
)

SOAK_MAX_S = 86_400.0
LOOKS = 20
LOOK_MIN_S, LOOK_MAX_S = 1.0, 10.0
"""The window is looked at so often, within these bounds: a look takes a quarter of a second of CPU."""

UNREADY_S = 30.0
"""So long after the window a process that is not ready may come: the load may have asked for it at its very end."""

LOST_S = 15.0
"""So long control may not answer: one that dies is back within a second or two."""

SLOWER_MIN_MS = 1.0

SERVED = ("serving", "replaced")
"""States in which a version answers: in the second one another version is to come, or was given up."""

PASSED, FAILED, WAIT = "passed", "failed", "wait"


class Terms(NamedTuple):
    """What a version has to be."""

    soak_s: float
    min_requests: int
    min_requests_required: bool
    max_failed_percent: float
    max_slowdown: float
    measure_only: bool = False


class Look(NamedTuple):
    """One version at one time."""

    state: str
    """Empty: it is not there at all."""
    wanted: int
    ready: int
    reason: str
    answered: int
    failed: int
    counts: Counts
    deaths: dict[str, int]
    """By process, since the host started."""
    last_exit: str
    """Of the process that died last, in words."""
    fronts: tuple[int, ...]
    """Their pids: a front that starts counts from 0 again."""


class Window(NamedTuple):
    """What happened between the first look and the last."""

    watched_s: float = 0.0
    answered: int = 0
    failed: int = 0
    counts: Counts = {}  # noqa: RUF012 - nobody changes one
    deaths: int = 0
    gaps: int = 0
    """How often fronts were started again: what they had counted since the look before is left out."""

    @property
    def requests(self) -> int:
        return self.answered + self.failed

    @property
    def numbers(self) -> dict[str, Any]:
        """As a result."""
        return {
            "watched_s": round(self.watched_s, 3),
            **numbers(self.answered, self.failed, self.counts),
            "deaths": self.deaths,
        }


# -- decisions ----------------------------------------------------------------------------------------------------
def look_at(document: dict[str, Any], name: str, version: str) -> Look:
    """Find a version in what `modelhost status --json` says."""
    fronts = tuple(slot["pid"] for slot in document.get("host") or [] if slot["name"].startswith("front:"))
    models = [one for one in document.get("models") or [] if (one["name"], one["version"]) == (name, version)]
    if not models:
        return Look("", 0, 0, "", 0, 0, {}, {}, "", fronts)
    (model,) = models
    traffic = model.get("traffic") or {}
    slots = model.get("slots") or []
    exits = [
        (slot["last_exit"]["at"], f"{slot['name']}: {slot['last_exit']['reason']}")
        for slot in slots
        if slot.get("last_exit")
    ]
    return Look(
        state=model["state"],
        wanted=model["wanted"],
        ready=model["ready"],
        reason=model.get("reason") or "",
        answered=traffic.get("answered", 0),
        failed=traffic.get("failed", 0),
        counts=counts_of(traffic),
        deaths={slot["name"]: sum((slot.get("deaths") or {}).values()) for slot in slots},
        last_exit=max(exits)[1] if exits else "",
        fronts=fronts,
    )


def default_version(document: dict[str, Any], name: str) -> str | None:
    """The version that answers requests without one, now."""
    found = [one for one in document.get("models") or [] if one["name"] == name and one["default"]]
    served = [one for one in found if one["state"] in SERVED]
    return served[0]["version"] if served else None


def grown(window: Window, before: Look, now: Look, more_s: float) -> Window:
    """The window with what came between two looks."""
    # Of slots that are new, all deaths: it was not there to die before.
    deaths = sum(max(0, count - before.deaths.get(slot, 0)) for slot, count in now.deaths.items())
    window = window._replace(watched_s=window.watched_s + more_s, deaths=window.deaths + deaths)
    answered, failed = now.answered - before.answered, now.failed - before.failed
    if before.fronts != now.fronts or answered < 0 or failed < 0:
        return window._replace(gaps=window.gaps + 1)
    return window._replace(
        answered=window.answered + answered,
        failed=window.failed + failed,
        counts=merged(window.counts, counts_since(before.counts, now.counts)),
    )


def judge(terms: Terms, window: Window, now: Look, reference: dict[str, Any]) -> tuple[str, str]:
    """The verdict, and why. The rules are those of a canary on one host (`host/control/judge.py`), and `ailment`."""
    ill = ailment(window, now)
    if ill:
        return FAILED, ill
    seen, elsewhere = window.numbers, float(reference.get("failed_percent") or 0.0)
    percent = seen["failed_percent"] or 0.0
    enough = window.requests >= terms.min_requests
    failed = f"{percent:.1f} % of {window.requests} requests failed, {elsewhere:.1f} % elsewhere"
    if enough and not terms.measure_only and percent - elsewhere > terms.max_failed_percent:
        return FAILED, failed
    if window.watched_s < terms.soak_s:
        return WAIT, failed
    if now.ready < now.wanted:
        why = f"{now.ready} of {now.wanted} processes are ready"
        return (WAIT if window.watched_s < terms.soak_s + UNREADY_S else FAILED), why
    if not terms.soak_s:
        return PASSED, f"it is served by {now.ready} processes"
    if terms.measure_only:
        return PASSED, failed
    if not enough:
        why = f"{window.requests} requests, of {terms.min_requests} that it takes to say anything"
        if window.requests and not window.answered:
            return FAILED, f"{why}, and all of them failed"
        return (FAILED if terms.min_requests_required else PASSED), why
    return judge_speed(terms, seen["p90_ms"], reference.get("p90_ms"), failed)


def ailment(window: Window, now: Look) -> str:
    """Why a version fails whatever its requests say; empty: it does not. Who is watched neither dies nor leaves."""
    if now.state not in SERVED:
        state = {"": "not there", "failed": "given up"}.get(now.state, now.state)
        return f"it is {state}{f': {now.reason}' if now.reason else ', and not served'}"
    if now.reason:
        return f"it cannot serve: {now.reason}"
    if window.deaths:
        return f"deaths of its processes: {window.deaths}, the last one {now.last_exit or 'nobody knows why'}"
    return ""


def judge_speed(terms: Terms, p90_ms: float | None, base_ms: float | None, failed: str) -> tuple[str, str]:
    """The last question."""
    if p90_ms is None or base_ms is None:
        return PASSED, failed
    times = f"p90 {p90_ms:.1f} ms, elsewhere {base_ms:.1f} ms"
    if p90_ms > terms.max_slowdown * base_ms and p90_ms - base_ms > SLOWER_MIN_MS:
        return FAILED, times
    return PASSED, f"{failed}; {times}"


# -- the host -----------------------------------------------------------------------------------------------------
class Gate:
    """Asks the host."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.window: Window | None = None

    def status(self) -> dict[str, Any]:
        """What runs; waits for a control that is being started again. Raises `Failure`."""
        deadline = time.monotonic() + LOST_S
        while True:
            params = self.params
            document = read_status(params["command"], params["config"], params["timeout_s"])
            if document.get("running") and "models" in document:
                return document
            if not document.get("running") or time.monotonic() > deadline:
                raise Failure(f"nothing can be said of it: {document.get('reason')}")
            time.sleep(LOOK_MIN_S)

    def smoke(self, version: str) -> list[dict[str, Any]]:
        """Have it asked; what was found. Raises `Failure`."""
        params = self.params
        argv = [params["command"], "doctor", "--only", "models", "--model", f"{params['model']}.v{version}", "--json"]
        ran = run([*argv, "--config", params["config"]], params["timeout_s"])
        findings = document_of(ran, "modelhost doctor").get("findings") or []
        if ran.code:
            bad = [one for one in findings if one.get("level") == "fail"]
            raise Failure("\n".join(f"{one['subject']}: {one['what']}" for one in bad) or f"exit code {ran.code}")
        return findings

    def watch(self, terms: Terms, version: str, reference: dict[str, Any]) -> tuple[str, str]:
        """Until there is a verdict. Raises `Failure`."""
        name, interval_s = self.params["model"], min(LOOK_MAX_S, max(LOOK_MIN_S, terms.soak_s / LOOKS))
        before, at_s = look_at(self.status(), name, version), time.monotonic()
        self.window = Window()
        while True:
            verdict, reason = judge(terms, self.window, before, reference)
            if verdict != WAIT:
                return verdict, reason
            left_s = terms.soak_s - self.window.watched_s
            time.sleep(min(interval_s, left_s) if left_s > 0 else LOOK_MIN_S)
            now, now_s = look_at(self.status(), name, version), time.monotonic()
            self.window = grown(self.window, before, now, now_s - at_s)
            before, at_s = now, now_s


def problems_of(params: dict[str, Any]) -> list[str]:
    """What is wrong with the options."""
    bounds = {
        "soak_s": (0, SOAK_MAX_S),
        "max_failed_percent": (0, 100),
        "max_slowdown": (0, 1000),
        "min_requests": (1, 10**6),
    }
    problems = [
        f"{key}: expected a number from {low:g} to {high:g}, received {params[key]:g}"
        for key, (low, high) in bounds.items()
        if not low <= params[key] <= high
    ]
    for key in ("failed_percent", "p90_ms"):
        value = (params["reference"] or {}).get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
            problems.append(f"reference: {key}: expected a number of at least 0, or none, received {value!r}")
    return problems


def main() -> None:
    """Run as Ansible runs modules."""
    module = AnsibleModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "version": {"type": "str"},
            "soak_s": {"type": "float", "default": 0.0},
            "smoke": {"type": "bool", "default": True},
            "min_requests": {"type": "int", "default": 100},
            "min_requests_required": {"type": "bool", "default": False},
            "max_failed_percent": {"type": "float", "default": 1.0},
            "max_slowdown": {"type": "float", "default": 2.0},
            "reference": {"type": "dict"},
            "measure_only": {"type": "bool", "default": False},
            "timeout_s": {"type": "float", "default": 90.0},
            **common_arguments(),
        },
        supports_check_mode=True,
    )
    params = module.params
    problems = problems_of(params)
    if problems:
        module.fail_json(msg="\n".join(problems))
    if module.check_mode:
        module.exit_json(changed=False, skipped=True, msg="check mode: there is nothing to watch")
    gate, reference = Gate(params), params["reference"] or {}
    version, findings = params["version"], []
    try:
        version = version or default_version(gate.status(), params["model"])
        if version is None:
            raise Failure("no version of it is served")
        if params["smoke"]:
            findings = gate.smoke(version)
        terms = Terms(**{key: params[key] for key in Terms._fields})
        verdict, reason = gate.watch(terms, version, reference)
    except Failure as failure:
        verdict, reason = FAILED, str(failure)
    notes = [f"{one['subject']}: {one['what']}" for one in findings if one.get("level") == "warn"]
    if gate.window is not None and gate.window.gaps:
        notes.append(f"fronts were started again {gate.window.gaps} times: some requests are not counted")
    if verdict == PASSED and params["measure_only"]:
        verdict = "measured"
    result = {
        "changed": False,
        "verdict": verdict,
        "reason": reason,
        "version": version,
        "notes": notes,
        "smoke": findings,
        "window": gate.window.numbers if gate.window is not None else None,
    }
    if verdict == FAILED:
        module.fail_json(msg=f"{params['model']} version {version or 'unknown'}: {reason}", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
