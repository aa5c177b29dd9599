"""Judges what can be known whether a host runs or not: facts in, findings out. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from host.cli.printing import size_text
from host.doctor.facts import (
    ClockFacts,
    ConfigurationFacts,
    DiskFacts,
    EnvironmentFacts,
    IsolationFacts,
    LimitFacts,
    MemoryFacts,
    PortFacts,
    SocketFacts,
    SpaceFacts,
)
from host.doctor.findings import Finding, Group, fail, ok, warn

WIDER_THAN_OWNER: Final = 0o077
SPACE_LOW_SHARE: Final = 0.05
SPACE_LOW_BYTES: Final = 1 << 30
"""Below this a file system that is nearly full is called so: 5 % of a large one is plenty."""

SPACE_NONE_BYTES: Final = 16 << 20
"""With less a host cannot go on: it writes its state anew at every change, and its logs."""

INODES_LOW: Final = 1000
LOGS_USUAL_BYTES: Final = 1 << 30
ROOM_LOW_SHARE: Final = 0.9
MEMORY_LOW_SHARE: Final = 0.05
SWAP_USED_SHARE: Final = 0.1
"""Of the host's memory: more than what is never used again and rightly lies there."""


def check_configuration(facts: ConfigurationFacts) -> list[Finding]:
    """Everything that `modelhost check` finds."""
    if not facts.problems:
        what = f"{facts.versions} model versions with {facts.processes} processes: nothing wrong"
        return [ok(Group.CONFIGURATION, facts.source, what)]
    found = []
    for problem in facts.problems:
        # A problem begins with the file or setting that it is of.
        subject, separator, what = problem.partition(": ")
        if not separator:
            subject, what = facts.source, problem
        found.append(fail(Group.CONFIGURATION, subject, what, "change it; modelhost check says whether it is right"))
    return found


def check_environments(facts: Sequence[EnvironmentFacts]) -> list[Finding]:
    """Whether workers would find their interpreter and what they import."""
    found = []
    for one in facts:
        build = f"modelhost build {' '.join(one.models)}"
        whose = ", ".join(one.models) or "every model without an environment of its own"
        if not one.built:
            found.append(fail(Group.ENVIRONMENTS, one.python, f"the environment of {whose} is not built", build))
        elif one.problem:
            again = f"remove the environment's directory, then: {build}" if one.models else "change model_python"
            found.append(fail(Group.ENVIRONMENTS, one.python, f"cannot run {whose}: {one.problem}", again))
        else:
            what = f"starts in {one.took_s:.2f} s, with what a worker needs"
            found.append(ok(Group.ENVIRONMENTS, one.python, what))
    return found


def check_ports(facts: PortFacts) -> list[Finding]:
    """Whether the fronts have their port to themselves."""
    where = f"{facts.address} port {facts.port}"
    found = []
    if facts.bind_problem:
        free = "stop that process, or choose another port"
        found.append(fail(Group.PORTS, where, facts.bind_problem, free))
    for front in facts.deaf:
        does = f"see its log, and start it again: modelhost restart {front.partition(':')[0]}"
        found.append(fail(Group.PORTS, where, f"{front} runs and does not listen there", does))
    for other in facts.others if facts.running else ():
        what = f"pid {other.pid} ({other.command}) listens on that port too, on some address"
        found.append(warn(Group.PORTS, where, what, "make sure that no client reaches it in place of the fronts"))
    if not found:
        what = f"{', '.join(facts.fronts) or 'the host'} listens, and nobody else" if facts.running else "free"
        found.append(ok(Group.PORTS, where, what))
    return found


def check_isolation(facts: IsolationFacts) -> list[Finding]:
    """What keeps models apart here."""
    found = []
    for missing in facts.missing:
        subject, _, why = missing.partition(": ")
        if facts.setting == "required":
            does = 'allow it (docs/isolation.md); isolation = "required" refuses to start without it'
            found.append(fail(Group.ISOLATION, subject, f"not allowed here: {why}", does))
        else:
            does = "allow it (docs/isolation.md); until then models are not kept apart by it"
            found.append(warn(Group.ISOLATION, subject, f"not allowed here: {why}", does))
    for program in facts.outside:
        what = f"runs outside its cgroup below {facts.cgroup}: its limits are not in force"
        found.append(fail(Group.ISOLATION, program, what, f"modelhost restart {program}"))
    if facts.cgroup_version:
        what = f"version {facts.cgroup_version}, below {facts.cgroup}"
        found.append(ok(Group.ISOLATION, "cgroups", what))
    if not found or not facts.missing:
        found.append(ok(Group.ISOLATION, f'isolation = "{facts.setting}"', "everything is allowed here"))
    return found


def check_limits(facts: LimitFacts) -> list[Finding]:
    """Whether a limit is in the way, or soon will be."""
    found = []
    needed, allowed = facts.open_files_needed, facts.open_files_allowed
    if allowed is not None and allowed < needed:
        what = f"this user may open {allowed:,} files, one process needs {needed:,}"
        found.append(
            fail(Group.LIMITS, "open files", what, "raise it (ulimit -Hn, LimitNOFILE=), or lower max_connections")
        )
    for program, in_force in facts.open_files_in_force.items():
        if in_force < needed:
            what = f"may open {in_force:,} files, and needs {needed:,} with every connection that it may have"
            found.append(fail(Group.LIMITS, program, what, "raise the limit (LimitNOFILE=) and start the host again"))
    if not found:
        found.append(ok(Group.LIMITS, "open files", f"one process needs at most {needed:,}, and may have them"))
    for room in facts.rooms:
        what = f"{room.used:,} of {room.limit:,} {room.counted} are in use"
        more = f", and the host needs {room.needed:,} more" if room.needed else ""
        if room.used + room.needed > room.limit or room.used >= room.limit:
            found.append(fail(Group.LIMITS, room.name, what + more, f"raise {room.name}"))
        elif room.used + room.needed > ROOM_LOW_SHARE * room.limit:
            found.append(warn(Group.LIMITS, room.name, what + more, f"raise {room.name} before they run out"))
        else:
            found.append(ok(Group.LIMITS, room.name, what))
    return found


def check_sockets(facts: SocketFacts) -> list[Finding]:
    """Whether anybody but the host's user, and a model of its own socket, can reach what is in the run directory."""
    found = []
    for path in facts.paths:
        if path.mode & WIDER_THAN_OWNER:
            narrow = path.mode & 0o700
            what = f"mode {path.mode:04o}: expected nothing for group and others ({narrow:04o})"
            found.append(
                fail(Group.SOCKETS, path.path, what, f"chmod {narrow:04o} {path.path}, and find out who did it")
            )
        if path.uid != facts.owner and (path.uid not in facts.model_users or path.path == facts.run_dir):
            what = f"belongs to uid {path.uid}: expected uid {facts.owner}, which runs the host"
            found.append(fail(Group.SOCKETS, path.path, what, "find out whose it is, and start the host again"))
    if not found:
        what = f"{len(facts.paths)} directories and sockets, their owners' alone" if facts.paths else "not made yet"
        found.append(ok(Group.SOCKETS, facts.run_dir, what))
    return found


def check_clock(facts: ClockFacts) -> list[Finding]:
    """Whether the time of day is right; deadlines do not depend on it."""
    where = "CLOCK_REALTIME"
    if facts.synchronised is None:
        return [ok(Group.CLOCK, where, "the kernel does not say whether it is synchronised")]
    if not facts.synchronised:
        what = "not synchronised: times in logs, and ages of features by their freshness column, may be wrong"
        return [warn(Group.CLOCK, where, what, "run a time service (chrony, systemd-timesyncd) on the machine")]
    return [ok(Group.CLOCK, where, f"synchronised, within {facts.max_error_s:.3f} s")]


def check_disk(facts: DiskFacts) -> list[Finding]:
    """Whether there is room for what is written."""
    found = [_space(space) for space in facts.spaces]
    run = next((space for space in facts.spaces if space.purpose == "run_dir"), None)
    logs, most = facts.logs_bytes, facts.logs_max_bytes
    what = f"{size_text(logs)}; the logs of what runs are at most {size_text(most)}"
    if run is not None and logs + run.free_bytes < most:
        what = f"{what}, and {size_text(run.free_bytes)} are free"
        found.append(warn(Group.DISK, facts.logs, what, "make room, or put run_dir on a larger file system"))
    elif logs > max(most, LOGS_USUAL_BYTES):
        found.append(warn(Group.DISK, facts.logs, what, "remove logs of versions that run no more"))
    else:
        found.append(ok(Group.DISK, facts.logs, what))
    return found


def _space(space: SpaceFacts) -> Finding:
    subject = f"{space.purpose} {space.path}"
    free, total = space.free_bytes, space.total_bytes
    what = f"{size_text(free)} of {size_text(total)} free"
    inodes = f"{space.free_inodes:,} of {space.total_inodes:,} inodes free"
    none_left = space.total_inodes and not space.free_inodes
    if free < SPACE_NONE_BYTES or none_left:
        said = inodes if none_left else what
        if space.purpose == "run_dir":
            return fail(Group.DISK, subject, f"full: {said}", "make room now: the host cannot write what should run")
        return warn(Group.DISK, subject, f"full: {said}", "make room: modelhost gc removes what nothing needs")
    if free < min(SPACE_LOW_BYTES, SPACE_LOW_SHARE * total):
        return warn(Group.DISK, subject, f"nearly full: {what}", "make room: modelhost gc removes what nothing needs")
    if space.total_inodes and space.free_inodes < INODES_LOW:
        return warn(Group.DISK, subject, f"nearly full: {inodes}", "remove files: each one takes an inode")
    return ok(Group.DISK, subject, what)


def check_memory(facts: MemoryFacts) -> list[Finding]:
    """Whether what is promised is there."""
    found: list[Finding] = []
    granted, total = size_text(facts.granted_bytes), size_text(facts.total_bytes)
    limits = "limits of models"
    if facts.granted_bytes > facts.total_bytes:
        what = f"{granted} together, more than the {total} that this host has or may use"
        found.append(fail(Group.MEMORY, limits, what, "lower [resources] memory, or run fewer processes"))
    elif not facts.running and facts.granted_bytes > facts.available_bytes:
        what = f"{granted} together, and {size_text(facts.available_bytes)} of {total} are available now"
        found.append(warn(Group.MEMORY, limits, what, "find out what else takes memory: models may be killed for it"))
    else:
        found.append(ok(Group.MEMORY, limits, f"{granted} together, of {total}"))
    what = f"{size_text(facts.available_bytes)} of {total} available"
    if facts.available_bytes < MEMORY_LOW_SHARE * facts.total_bytes:
        does = "find out what takes it (modelhost status, top): the kernel will soon kill a model"
        found.append(warn(Group.MEMORY, "available", what, does))
    else:
        found.append(ok(Group.MEMORY, "available", what))
    found += _swap(facts)
    return found


def _swap(facts: MemoryFacts) -> Iterable[Finding]:
    used = facts.swap_used_bytes
    if used > SWAP_USED_SHARE * facts.total_bytes:
        what = f"{size_text(used)} in use: a worker that was swapped out answers late"
        yield warn(
            Group.MEMORY, "swap", what, "give models less or the host more memory; without swap none is moved out"
        )
    else:
        yield ok(
            Group.MEMORY,
            "swap",
            f"{size_text(used)} of {size_text(facts.swap_total_bytes)} in use" if facts.swap_total_bytes else "none",
        )
    left = facts.commit_left_bytes
    if left is not None and not facts.running and left < facts.granted_bytes:
        what = f"= 2, and {size_text(left)} may still be allocated: models cannot get {size_text(facts.granted_bytes)}"
        yield warn(
            Group.MEMORY, "vm.overcommit_memory", what, "raise vm.overcommit_ratio, or set vm.overcommit_memory to 0"
        )
