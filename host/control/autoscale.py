"""How many processes a model should have. Pure: policy, memory and observation in, a number out; no clock.

| what is seen                                              | what follows                                             |
|-----------------------------------------------------------|----------------------------------------------------------|
| workers busier than `up_share`                            | at once, as many as bring them back to `target_share`    |
| requests wait longer than `queue_wait_max_s`              | at once, one more than is ready, if these are not idle   |
| some of those wanted still load                           | they count: nothing is added twice for one load          |
| fewer would do, at `down_share`, for `stabilisation_s`    | as few as that, if `cool_down_s` is over                 |
| a request, and no process                                 | one, at once                                             |
| no request for `idle_s`, and `min_processes` is 0         | none                                                     |

It does not flap. Work is measured in processes kept busy. `n` of them become more only above `up_share * n`, or
above `down_share * n` when requests wait; they become `n` again only when there was at most `down_share * n` for a
whole stabilisation window. What lies between changes nothing. This is the algorithm of Kubernetes' Horizontal Pod
Autoscaler (kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale, "Algorithm details" and "Stabilization
window"): `ceil(processes * share / target)`, a tolerance around the target, the largest recommendation of a window
before a step down, none before a step up. What differs is said beside each constant and in docs/adr/0025.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from host.config.deployment import DeployedModel
from host.control.observe import Observation

LOOK_S: Final = 0.5
"""From one look to the next. Kubernetes looks every 15 s, because its metrics come from far; a worker here is asked
over a socket."""

READ_TIMEOUT_S: Final = 0.5
"""A worker that has not answered by then is in a batch: busy."""

TARGET_SHARE: Final = 0.7
"""Knative's target utilization (knative.dev/docs/serving/autoscaling/concurrency)."""
UP_SHARE: Final = 0.8
DOWN_SHARE: Final = 0.6
"""Kubernetes leaves 10 % on either side of the target alone (`horizontal-pod-autoscaler-tolerance`), that is 0.63 to
0.77; shares of single seconds vary more than its averages do (docs/adr/0025)."""

QUEUE_WAIT_SHARE: Final = 0.25
"""Of the model's `timeout_ms`: requests that wait longer than this have no room for a slow batch."""

SMOOTHING_S: Final = 1.0
"""Time constant of the average of load: 1.6 s make a step from nothing to all plain."""

SMOOTHING_REQUESTS: Final = 6.0
"""And at least so many times what one request keeps a worker busy: of a model that takes seconds, a single look only
says whether it ran just then. Not the time of a batch, which grows with what has queued (docs/adr/0025)."""

SETTLE_S: Final = 1.75
"""From when workers have come until more are asked for: what was queued up until then keeps all busy."""

STABILISATION_S: Final = 60.0
"""Knative's stable window (knative.dev/docs/serving/autoscaling/kpa-specific). Kubernetes waits 300 s before a step
down, because a pod comes back in tens of seconds; a worker does in one or two."""

STABILISATION_REQUESTS: Final = 200.0
"""And at least so many times what one request keeps a worker busy: chance alone brings several requests of a slow model
together."""

COOL_DOWN_S: Final = 30.0
"""From any change to a step down: a load that ebbs away takes processes with it in a few steps, not one each second.
Application Auto Scaling's ScaleInCooldown of AWS, which is 300 s, is the same rule."""

IDLE_S: Final = 300.0
"""KEDA's `cooldownPeriod`, before it goes to zero (keda.sh/docs/latest/reference/scaledobject-spec): the next request
waits until the model is loaded."""

MAX_STEP: Final = 4
"""Kubernetes' default policy upwards: twice as many, or four more, whichever is more."""

_NOBODYS_NEED: Final = 0.01
"""Of a process: an average that dies away never reaches zero."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How one model is scaled."""

    min_processes: int
    max_processes: int
    queue_wait_max_s: float
    target_share: float = TARGET_SHARE
    up_share: float = UP_SHARE
    down_share: float = DOWN_SHARE
    smoothing_s: float = SMOOTHING_S
    stabilisation_s: float = STABILISATION_S
    cool_down_s: float = COOL_DOWN_S
    idle_s: float = IDLE_S
    max_step: int = MAX_STEP


def policy_of(model: DeployedModel) -> Policy:
    """The policy of a model that is scaled (`model.autoscaled`)."""
    return Policy(
        min_processes=model.min_processes,
        max_processes=model.max_processes,
        queue_wait_max_s=QUEUE_WAIT_SHARE * model.limits.timeout_ms / 1000,
    )


class Need(msgspec.Struct, frozen=True):
    """How many processes a look found needed."""

    at_s: float
    processes: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one model between two looks. Who forgets it loses nothing but a step down that was near."""

    seen_s: float = -math.inf
    """When the last look was."""
    load: float = 0.0
    """Processes kept busy, averaged."""
    request_s: float = 0.0
    """Mean time for which a request keeps a worker busy, when there was one last."""
    ready: int = 0
    """Workers of the last look."""
    grown_s: float = -math.inf
    """When a look saw more workers than the one before."""
    needs: tuple[Need, ...] = ()
    """Of the stabilisation window, the largest first; those that a later and larger one outdoes are left out."""
    changed_s: float = -math.inf
    requested_s: float = -math.inf
    """When there was a request last."""


class Decision(NamedTuple):
    """What should run from now on."""

    wanted: int
    state: State
    """For the next look."""
    why: str
    """Of a change, for the log; empty without one."""


def decide(policy: Policy, state: State, seen: Observation, now_s: float) -> Decision:
    """Say how many processes are wanted. `now_s`: of a clock that never goes back."""
    state = _with_load(policy, state, seen, now_s)
    more, why = _upwards(policy, state, seen, now_s)
    state = _with_need(policy, state, seen, max(more, _needed(policy, state, seen, now_s)), now_s)
    wanted = more
    if more <= seen.wanted:
        wanted, why = _downwards(policy, state, seen, now_s)
    within = min(max(wanted, policy.min_processes), policy.max_processes)
    if within == seen.wanted:
        return Decision(within, state, "")
    if within != wanted and not policy.min_processes <= seen.wanted <= policy.max_processes:
        why = f"{policy.min_processes} to {policy.max_processes} are allowed"
    return Decision(within, msgspec.structs.replace(state, changed_s=now_s), why)


def _with_load(policy: Policy, state: State, seen: Observation, now_s: float) -> State:
    load = seen.ready * seen.busy
    request_s = seen.request_s or state.request_s
    if state.seen_s != -math.inf:
        keep = math.exp((state.seen_s - now_s) / max(policy.smoothing_s, SMOOTHING_REQUESTS * request_s))
        load = keep * state.load + (1.0 - keep) * load
    asked = seen.requests or seen.unserved or load > _NOBODYS_NEED or state.requested_s == -math.inf
    return msgspec.structs.replace(
        state,
        seen_s=now_s,
        load=load,
        request_s=request_s,
        ready=seen.ready,
        grown_s=now_s if seen.ready > state.ready > 0 else state.grown_s,
        requested_s=now_s if asked else state.requested_s,
    )


def _upwards(policy: Policy, state: State, seen: Observation, now_s: float) -> tuple[int, str]:
    """As many as the load asks for at once; it is more than are wanted already, or 0."""
    if not seen.wanted:
        return (1, "a request came") if seen.unserved else (0, "")
    if now_s - state.grown_s < SETTLE_S:
        return 0, ""
    need, why = 0, ""
    if seen.ready and state.load > policy.up_share * seen.ready:
        need = math.ceil(state.load / policy.target_share)
        why = f"{_share(state, seen)} busy"
    if (
        seen.queue_wait_s > policy.queue_wait_max_s
        and state.load > policy.down_share * seen.ready
        and need <= seen.ready
    ):
        need = seen.ready + 1
        why = f"requests waited {seen.queue_wait_s:.3f} s for {seen.ready} ready"
    most = seen.wanted + max(policy.max_step, seen.wanted)
    return (min(need, most), why) if need > seen.wanted else (0, "")


def _needed(policy: Policy, state: State, seen: Observation, now_s: float) -> int:
    """How many a later step down has to leave, by this look."""
    if not seen.ready:
        return 0 if _idle(policy, state, now_s) else seen.wanted
    if seen.ready < seen.wanted and state.load > policy.up_share * seen.ready:
        return seen.wanted  # what these few cannot show
    return math.ceil(max(0.0, state.load - _NOBODYS_NEED) / policy.down_share)


def _with_need(policy: Policy, state: State, seen: Observation, need: int, now_s: float) -> State:
    oldest_s = now_s - max(policy.stabilisation_s, STABILISATION_REQUESTS * state.request_s)
    # The first look knows nothing of the time before it.
    needs = state.needs or (Need(now_s, seen.wanted),)
    kept = [one for one in needs if one.at_s >= oldest_s and one.processes > need]
    return msgspec.structs.replace(state, needs=(*kept, Need(now_s, need)))


def _downwards(policy: Policy, state: State, seen: Observation, now_s: float) -> tuple[int, str]:
    """The most that any look of the window needed, if less is wanted now and the last change is old enough."""
    idle = _idle(policy, state, now_s)
    least = max(state.needs[0].processes, policy.min_processes if idle else max(1, policy.min_processes))
    if least >= seen.wanted or now_s - state.changed_s < policy.cool_down_s:
        return seen.wanted, ""
    if not least:
        return 0, f"no request for {policy.idle_s:.0f} s"
    return least, f"no more were needed for {policy.stabilisation_s:.0f} s"


def _idle(policy: Policy, state: State, now_s: float) -> bool:
    return now_s - state.requested_s >= policy.idle_s


def _share(state: State, seen: Observation) -> str:
    return f"{seen.ready} ready {min(1.0, state.load / seen.ready):.0%}"
