"""Goes through the groups, each within its limit: whatever hangs, the doctor does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, TypeVar, assert_never

from host.doctor import gather, gather_live
from host.doctor.checks import (
    check_clock,
    check_configuration,
    check_disk,
    check_environments,
    check_isolation,
    check_limits,
    check_memory,
    check_ports,
    check_sockets,
)
from host.doctor.facts import Seen, SupervisorFacts
from host.doctor.findings import Finding, Group, fail, ok
from host.doctor.kernel import read_clock
from host.doctor.live_checks import check_control, check_fronts, check_models, check_stores, check_supervisord
from host.doctor.target import Target

LIMIT_S: Final = 15.0
"""Of a group that has no limit of its own."""

LIMITS_S: Final[Mapping[Group, float]] = {
    Group.CONFIGURATION: 120.0,  # every file of every package with a manifest is read
    Group.ENVIRONMENTS: 120.0,
    Group.ISOLATION: 100.0,  # three trials of at most 30 s
    Group.STORES: gather_live.STORES_S + 10.0,
    Group.MODELS: gather_live.MODELS_S + 15.0,
}
OF_A_RUNNING_HOST: Final = frozenset({Group.SUPERVISORD, Group.CONTROL, Group.FRONTS, Group.MODELS})

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One group, and what was found."""

    group: Group
    findings: tuple[Finding, ...]
    took_s: float


class Examination:
    """One host. What several groups need is asked once."""

    def __init__(self, target: Target, models: Sequence[str] = ()) -> None:
        """`models`: of the models only these, which have to be served."""
        self._target = target
        self._models = models

    def run(self, only: Collection[Group] = (), begin: Callable[[Group], None] = lambda _: None) -> Iterator[Examined]:
        """Look at every group, or only at some; `begin` is called before each."""
        for group in Group:
            if only and group not in only:
                continue
            begin(group)
            begun_s = time.monotonic()
            findings = self._findings(group)
            yield Examined(group=group, findings=tuple(findings), took_s=time.monotonic() - begun_s)

    def _findings(self, group: Group) -> list[Finding]:
        if group in OF_A_RUNNING_HOST and not self._target.running:
            root = str(self._target.run_dir.root)
            if group is Group.MODELS and self._models:
                return [fail(group, root, "no host runs here that could serve them", "start it: modelhost up")]
            return [ok(group, root, "no host runs here: not looked at")]
        limit_s = LIMITS_S.get(group, LIMIT_S)
        try:
            return within(limit_s, lambda: self._examine(group))
        except TimeoutError:
            what = f"could not be looked at within {limit_s:.0f} s: something that was read or asked hangs"
            return [fail(group, group.value, what, "see whether a disk, a network file system or the machine hangs")]
        except Exception as error:  # one group's defect must not hide what the others find
            what = f"could not be looked at: {type(error).__name__}: {error}"
            return [fail(group, group.value, what, "correct what it names; if it names nothing of yours, report it")]

    def _examine(self, group: Group) -> list[Finding]:
        target = self._target
        match group:
            case Group.CONFIGURATION:
                return check_configuration(gather.gather_configuration(target))
            case Group.ENVIRONMENTS:
                return check_environments(gather.gather_environments(target))
            case Group.PORTS:
                return check_ports(gather.gather_ports(target, self._processes))
            case Group.ISOLATION:
                return check_isolation(gather.gather_isolation(target, self._processes))
            case Group.LIMITS:
                return check_limits(gather.gather_limits(target, self._processes))
            case Group.SOCKETS:
                return check_sockets(gather.gather_sockets(target))
            case Group.CLOCK:
                return check_clock(read_clock())
            case Group.DISK:
                return check_disk(gather.gather_disk(target))
            case Group.MEMORY:
                return check_memory(gather.gather_memory(target))
            case Group.SUPERVISORD:
                return check_supervisord(self._supervisor)
            case Group.CONTROL:
                return check_control(gather_live.gather_control(target, self._processes))
            case Group.FRONTS:
                return check_fronts(gather_live.gather_fronts(target, self._processes))
            case Group.STORES:
                return check_stores(gather_live.gather_stores(target, self._processes))
            case Group.MODELS:
                return check_models(gather_live.gather_models(target, self._processes, self._models))
        assert_never(group)

    @cached_property
    def _supervisor(self) -> SupervisorFacts:
        return gather_live.gather_supervisord(self._target)

    @property
    def _processes(self) -> tuple[Seen, ...]:
        return self._supervisor.processes if self._target.running else ()


def within(limit_s: float, work: Callable[[], Result]) -> Result:
    """Run something in a thread of its own; raise what it raises, or `TimeoutError` if it takes longer.

    What is late goes on, as nothing stops a thread whose disk does not answer; it is a daemon and holds no exit up.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
