"""Desired against actual, as a pure function."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from host.config.deployment import DeployedModel, Deployment
from host.control.compare import SlotHistory, compare, not_ready, served
from host.control.deaths import SlotDeaths
from host.control.status import Backoff, DeathKind, ExitStatus, HostStatus, Readiness
from host.protocol.messages import Limits
from host.protocol.types import Signature
from host.supervisor import ProcessInfo, ProcessState

NOW = 1000.0
READY = Readiness(ready=True, pid=11, since=990.0)


def deployed(name: str = "churn", processes: int = 2) -> DeployedModel:
    return DeployedModel(
        name=name,
        version="3",
        processes=processes,
        package="/p",
        platform="python",
        signature=Signature((), ()),
        limits=Limits(),
    )


def process(group: str, name: str, state: ProcessState = ProcessState.RUNNING, pid: int = 11) -> ProcessInfo:
    return ProcessInfo(
        group=group, name=name, state=state, pid=pid, start_s=900, stop_s=0, exit_status=0, spawn_error=""
    )


HOST = [process("front", "0"), process("control", "control")]
WORKERS = [process("churn.v3", "0"), process("churn.v3", "1")]
BOTH = {"churn.v3:0": READY, "churn.v3:1": READY}


def status(
    processes: list[ProcessInfo], readiness: dict[str, Readiness], histories: dict[str, SlotHistory] | None = None
) -> HostStatus:
    return compare(served(Deployment((deployed(),))), processes, readiness, histories or {}, NOW)


def test_everything_there_is_ready() -> None:
    seen = status(HOST + WORKERS, BOTH)
    assert (seen.ready, seen.wanted, seen.ready_processes) == (True, 2, 2)
    assert [(slot.name, slot.uptime_s, slot.since) for slot in seen.models[0].slots] == [
        ("churn.v3:0", 100.0, 990.0),
        ("churn.v3:1", 100.0, 990.0),
    ]
    assert [slot.name for slot in seen.host] == ["front:0", "control"]
    assert list(not_ready(seen)) == []


def test_running_is_not_ready() -> None:
    seen = status(HOST + WORKERS, {"churn.v3:0": READY})
    assert (seen.ready, seen.models[0].ready) == (False, 1)
    assert [slot.name for slot in not_ready(seen)] == ["churn.v3:1"]


def test_ready_before_supervisord_calls_it_running() -> None:
    starting = [process("churn.v3", str(slot), ProcessState.STARTING) for slot in range(2)]
    assert status(HOST + starting, BOTH).ready


def test_one_of_several_versions_does_not_make_the_host_ready() -> None:
    deployment = Deployment((deployed(), deployed("other", 1)))
    seen = compare(served(deployment), HOST + WORKERS, BOTH, {}, NOW)
    assert not seen.ready
    assert (seen.models[1].wanted, seen.models[1].ready, seen.models[1].slots[0].state) == (1, 0, "MISSING")


def test_without_a_running_front_the_host_is_not_ready() -> None:
    assert not status(WORKERS, BOTH).ready
    assert not status([process("front", "0", ProcessState.BACKOFF, 0), *WORKERS], BOTH).ready


def test_a_dead_process_has_no_uptime() -> None:
    seen = status([*HOST, process("churn.v3", "0", ProcessState.FATAL, 0), WORKERS[1]], {"churn.v3:1": READY})
    assert (seen.models[0].slots[0].uptime_s, seen.models[0].slots[0].state) == (0.0, "FATAL")


def test_restarts_and_the_last_exit_are_shown() -> None:
    last = ExitStatus(at=1.0, pid=7, kind=DeathKind.SIGNAL, reason="r")
    deaths = SlotDeaths(counts={"signal": 2}, last=last)
    backoff = Backoff(short_lives=2, since=1.0, until=3.0)
    seen = status(HOST + WORKERS, BOTH, {"churn.v3:1": SlotHistory(starts=3, deaths=deaths, backoff=backoff)})
    assert [(slot.restarts, slot.last_exit, slot.deaths, slot.backoff) for slot in seen.models[0].slots] == [
        (0, None, {}, None),
        (2, last, {"signal": 2}, backoff),
    ]


def test_what_nobody_wants_is_shown_apart() -> None:
    extra = [process("churn.v3", "2"), process("old.v1", "0")]
    seen = status(HOST + WORKERS + extra, BOTH)
    assert seen.ready
    assert [slot.name for slot in seen.unwanted] == ["churn.v3:2", "old.v1:0"]


@given(
    wanted=st.integers(1, 6),
    ready=st.sets(st.integers(0, 9)),
    there=st.sets(st.integers(0, 9)),
    states=st.sampled_from(ProcessState),
)
def test_counts_always_agree(wanted: int, ready: set[int], there: set[int], states: ProcessState) -> None:
    processes = [process("churn.v3", str(slot), states) for slot in there]
    readiness = {f"churn.v3:{slot}": READY for slot in ready}
    seen = compare(served(Deployment((deployed(processes=wanted),))), HOST + processes, readiness, {}, NOW)
    assert seen.ready == (set(range(wanted)) <= ready)
    assert seen.ready_processes == len(ready & set(range(wanted)))
    assert len(seen.models[0].slots) == wanted
    assert len(seen.unwanted) == len(there - set(range(wanted)))
