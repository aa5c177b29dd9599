"""Which CPUs and how much memory each process of a host gets. Pure: topology and demands in, grants out.

Whole cores go to one process each while they last: SMT siblings together, all on one NUMA node. When there are not
enough, some cores become a pool that the rest share by weight. The pool is as small as it can be with at most
`POOL_PRESSURE` CPUs demanded for each CPU in it; where even a pool of all cores is fuller than that, all share.
A process keeps the cores that it had, whatever its neighbours do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from host.protocol.errors import ConfigError

POOL_PRESSURE: Final = 2
"""CPUs demanded for each CPU of the pool: fewer exclusive cores rather than more than this."""

WEIGHT: Final = 100
"""`cpu.weight` of one CPU demanded; cgroup v2's own default (docs.kernel.org/admin-guide/cgroup-v2.html)."""
WEIGHT_MAX: Final = 10_000
LIGHT_WEIGHT: Final = 10
FIRST_WEIGHT: Final = 1000
"""Of what every request passes through. Under a lesser one (3 and 4 times `WEIGHT` were tried) it waits out the time
slices of a worker that starts or leaks on its CPU (docs/adr/0018)."""

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """One logical CPU. `core` is the same number for SMT siblings, and for nobody else."""

    number: int
    core: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What the host may use: its own cpuset, and its memory."""

    cpus: tuple[Cpu, ...]
    memory_bytes: int

    @property
    def numbers(self) -> frozenset[int]:
        """All CPUs."""
        return frozenset(cpu.number for cpu in self.cpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one process wants."""

    name: str
    """As supervisord shows it: `churn.v3:0`."""
    cpus: int | frozenset[int] = 1
    """How many, or exactly which."""
    memory_bytes: int = 0
    """Its limit; 0: none."""
    weight: int = WEIGHT
    """Of each CPU, against the others in the pool."""
    light: bool = False
    """It hardly runs: in the pool always, and not counted there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What it gets."""

    cpus: frozenset[int]
    exclusive: bool
    """Nobody else has any of these CPUs, but for light processes that have no pool."""
    weight: int
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Core:
    node: int
    cpus: frozenset[int]


def place(topology: Topology, demands: Sequence[Demand], kept: Mapping[str, Grant] | None = None) -> dict[str, Grant]:
    """Give every process its CPUs, the first ones first. `kept`: the grants in force, by name.

    Raises `ConfigError` with every demand that the host cannot meet.
    """
    problems = [*_cpu_problems(topology, demands), *_memory_problems(topology, demands)]
    if problems:
        raise ConfigError(*problems)
    named = {demand.name: demand.cpus for demand in demands if isinstance(demand.cpus, frozenset)}
    named_cpus = frozenset().union(*named.values())
    free = [core for core in _cores(topology) if not core.cpus & named_cpus]
    spare = topology.numbers - named_cpus - frozenset().union(*(core.cpus for core in free))
    counted = {d.name: d.cpus for d in demands if isinstance(d.cpus, int) and not d.light}
    held = {name: grant.cpus for name, grant in (kept or {}).items() if grant.exclusive}
    given, pool = _divide(counted, free, spare, held)
    # What has its cores goes first. So, placed again, there may be room for more, which is given now: a host that
    # starts again with what it had moves nobody.
    for _ in counted:
        more, smaller = _divide(counted, free, spare, held | given)
        if more == given:
            break
        given, pool = more, smaller
    crowded = not pool and given.keys() != counted.keys()
    pool = pool or topology.numbers
    return {demand.name: _grant(demand, given.get(demand.name), named, pool, crowded=crowded) for demand in demands}


def _grant(
    demand: Demand,
    given: frozenset[int] | None,
    named: Mapping[str, frozenset[int]],
    pool: frozenset[int],
    *,
    crowded: bool,
) -> Grant:
    exclusive = True
    if isinstance(demand.cpus, frozenset):
        cpus, count = demand.cpus, len(demand.cpus)
        others = [other for name, other in named.items() if name != demand.name]
        exclusive = not crowded and not any(cpus & other for other in others)
    elif given is not None:
        cpus, count = given, demand.cpus
    else:
        cpus, count, exclusive = pool, demand.cpus, False
    weight = LIGHT_WEIGHT if demand.light else min(WEIGHT_MAX, demand.weight * count)
    return Grant(cpus=cpus, exclusive=exclusive, weight=weight, memory_bytes=demand.memory_bytes)


def _divide(
    counted: Mapping[str, int], free: Sequence[_Core], spare: frozenset[int], held: Mapping[str, frozenset[int]]
) -> tuple[dict[str, frozenset[int]], frozenset[int]]:
    """Whole cores by name, and the pool. `spare`: CPUs beside a named sibling, which are nobody's whole core.

    `held`: the CPUs of those that have whole cores by now.
    """
    for reserve in range(len(free) + 1):
        given = _exclusive(counted, free, len(free) - reserve, held)
        taken = frozenset().union(*given.values())
        pool = spare.union(*(core.cpus for core in free)) - taken
        shared = sum(count for name, count in counted.items() if name not in given)
        if shared <= POOL_PRESSURE * len(pool):
            break
    return given, pool


def _exclusive(
    counted: Mapping[str, int], free: Sequence[_Core], most: int, held: Mapping[str, frozenset[int]]
) -> dict[str, frozenset[int]]:
    """Give away at most so many cores: to those who had some, then to the others in their order."""
    left = list(free)
    given: dict[str, frozenset[int]] = {}

    def give(name: str, cores: Sequence[_Core]) -> None:
        if cores and len(free) - len(left) + len(cores) <= most:
            given[name] = frozenset().union(*(core.cpus for core in cores))
            for core in cores:
                left.remove(core)

    for name, count in counted.items():
        if name in held:
            give(name, _same_cores(count, held[name], left))
    for name, count in counted.items():
        if name not in given:
            give(name, _cores_for(count, left, free))
    return given


def _same_cores(count: int, cpus: frozenset[int], left: Iterable[_Core]) -> list[_Core]:
    """The cores that make up these CPUs, if they are free and what is wanted now; else none."""
    cores = [core for core in left if core.cpus <= cpus]
    whole = frozenset().union(*(core.cpus for core in cores)) == cpus
    return cores if whole and len(cores) == len(_fewest(count, cores)) else []


def _cores_for(count: int, left: Sequence[_Core], free: Sequence[_Core]) -> list[_Core]:
    """Free cores with so many CPUs: of one node, the fullest that has them, if one node could ever have as many."""
    nodes = sorted({core.node for core in free})
    fitting = [cores for node in nodes if (cores := _fewest(count, [core for core in left if core.node == node]))]
    if fitting:
        return min(fitting, key=lambda cores: sum(len(core.cpus) for core in left if core.node == cores[0].node))
    if any(_fewest(count, [core for core in free if core.node == node]) for node in nodes):
        return []
    return _fewest(count, left)


def _fewest(count: int, cores: Sequence[_Core]) -> list[_Core]:
    """The first cores that have so many CPUs together; none if all of them have not."""
    chosen: list[_Core] = []
    for core in cores:
        if sum(len(one.cpus) for one in chosen) >= count:
            break
        chosen.append(core)
    return chosen if sum(len(one.cpus) for one in chosen) >= count else []


def _cores(topology: Topology) -> list[_Core]:
    siblings: dict[tuple[int, int], list[int]] = {}
    for cpu in topology.cpus:
        siblings.setdefault((cpu.node, cpu.core), []).append(cpu.number)
    cores = [_Core(node, frozenset(numbers)) for (node, _), numbers in siblings.items()]
    return sorted(cores, key=lambda core: (core.node, min(core.cpus)))


# -- what cannot be -------------------------------------------------------------------------------------------
def _cpu_problems(topology: Topology, demands: Iterable[Demand]) -> Iterable[str]:
    have = topology.numbers
    for demand in demands:
        if isinstance(demand.cpus, frozenset):
            missing = demand.cpus - have
            if missing or not demand.cpus:
                yield (
                    f'{demand.name}: cpus: expected some of "{cpu_set_text(have)}", which the host may use, '
                    f'received "{cpu_set_text(demand.cpus)}"'
                )
        elif not 1 <= demand.cpus <= len(have):
            yield f"{demand.name}: cpus: expected 1 to {len(have)}, which the host has, received {demand.cpus}"


def limits_bytes(demands: Iterable[Demand]) -> int:
    """The memory limits of all, added up: more than the host's memory cannot be placed."""
    return sum(demand.memory_bytes for demand in demands)


def _memory_problems(topology: Topology, demands: Iterable[Demand]) -> Iterable[str]:
    limits = Counter((demand.name.partition(":")[0], demand.memory_bytes) for demand in demands if demand.memory_bytes)
    total = sum(size * count for (_, size), count in limits.items())
    if total <= topology.memory_bytes:
        return
    parts = " + ".join(f"{name} {count} x {size / _MIB:,.0f} MiB" for (name, size), count in limits.items())
    yield (
        f"memory: expected limits of at most {topology.memory_bytes / _MIB:,.0f} MiB in all, "
        f"received {parts} = {total / _MIB:,.0f} MiB"
    )


def cpu_set_text(cpus: Iterable[int]) -> str:
    """`0-2,5`, as the kernel and `model.toml` write a set of CPUs."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def parse_cpu_set(text: str) -> frozenset[int]:
    """Read `0-2,5`; the empty text is the empty set. Raises `ValueError`."""
    cpus: set[int] = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if high < low:
            raise ValueError(f"{part}: expected the lower number first")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)
