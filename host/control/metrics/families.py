"""Facts in, families of metrics out: pure. docs/metrics.md describes each one, and a test compares the two.

No label comes from a request: models, versions, slots, views and stores are deployed, the rest are our own words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from host.config.run_dir import FEATURES_GROUP
from host.control.metrics.facts import Facts, SlotUsage
from host.control.metrics.family import ROWS, SECONDS, Family, HistogramFamily, folded, folded_rows
from host.control.status import DeathKind, ModelStatus, SlotStatus, VersionState
from host.protocol.counters import FEATURES, FRONT, STATUSES, STORE, VIEW, WORKER, CounterSet
from host.protocol.errors import HTTP_STATUS

_NS_PER_S: Final = 1_000_000_000
_MS_PER_S: Final = 1_000
_VERSION: Final = ("model", "version")
_SLOT: Final = ("model", "slot", "version")
_PROCESS: Final = ("process",)

_STATUS_OF: Final = {error.code: status for error, status in HTTP_STATUS.items()}
_REASONS: Final = tuple(sorted(_STATUS_OF))
_COPIES: Final = ("shed", "failed", "skipped", "equal", "different")
_LOOKUPS: Final = ("fresh", "stale", "negative", "present", "absent", "unavailable")
_STEPS: Final = ("decode", "encode")

AnyFamily = Family | HistogramFamily
Sets = Mapping[str, Sequence[CounterSet]]
"""Group to what its processes have counted."""
Names = Callable[[str], tuple[str, str]]
"""Group to model and version."""


def families(facts: Facts) -> Iterable[AnyFamily]:
    """Everything that is exposed."""
    by_kind: dict[str, dict[str, list[CounterSet]]] = {}
    for one in facts.counters:
        by_kind.setdefault(one.kind, {}).setdefault(one.group, []).append(one)

    def of(kind: str) -> Sets:
        return by_kind.get(kind, {})

    names = facts.known.names()
    return chain(
        _host(facts),
        _versions(facts, names),
        _processes(facts),
        _deaths(facts, names),
        _requests(of(FRONT.kind), names),
        _shadows(of(FRONT.kind), names),
        _work(of(WORKER.kind), names),
        _features(of(FRONT.kind), of(FEATURES.kind), of(VIEW.kind), of(STORE.kind)),
    )


# -- the host -------------------------------------------------------------------------------------------------
def _host(facts: Facts) -> Iterator[AnyFamily]:
    status = facts.known.status
    info = Family("modelhost_build_info", "The release that runs; always 1.", "gauge", ("python", "version"))
    info.add(1, facts.python, facts.release)
    yield info
    for name, text, number in (
        ("ready", "Whether every process that is wanted is ready.", int(status.ready)),
        ("settled", "Whether no rollout is under way.", int(status.settled)),
        ("generation", "Of the desired state that the host follows.", status.generation),
        ("unreadable_counter_files", "Files of counters that cannot be read and are left out.", facts.complaints),
    ):
        family = Family(f"modelhost_{name}", text, "gauge")
        family.add(number)
        yield family


def _versions(facts: Facts, names: Names) -> Iterator[AnyFamily]:
    models = facts.known.status.models

    def gauge(name: str, text: str, number: Callable[[ModelStatus], int]) -> Family:
        family = Family(f"modelhost_{name}", text, "gauge", _VERSION)
        for model in models:
            family.add(number(model), model.name, model.version)
        return family

    states = Family("modelhost_version_state", "1 for the state that it is in.", "gauge", ("model", "state", "version"))
    for model in models:
        for state in VersionState:
            states.add(int(model.state is state), model.name, state.value, model.version)
    yield states
    yield gauge("workers_desired", "Workers that should run.", lambda model: model.wanted)
    yield gauge("workers_ready", "Workers that can serve.", lambda model: model.ready)
    for role in ("canary", "shadow"):
        share = Family(f"modelhost_{role}_percent", f"Share of a {role}.", "gauge", _VERSION)
        for group, percent in facts.known.beside.get(role, {}).items():
            share.add(percent, *names(group))
        yield share
    yield gauge(
        "features_unreadable",
        "Whether its features cannot be read at all.",
        lambda model: int(facts.known.is_unreadable(model)),
    )


def _processes(facts: Facts) -> Iterator[AnyFamily]:
    """What every process takes, and how often it has started and died: workers by slot, the host's own by name."""
    status = facts.known.status
    workers = {slot.name: (model, slot) for model in status.models for slot in model.slots}
    starts = facts.known.starts
    own = {slot.name: slot for slot in status.host}

    def both(name: str, text: str, kind: str, number: Callable[[SlotStatus], float | None]) -> Iterator[AnyFamily]:
        of_workers = Family(f"modelhost_worker_{name}", text, kind, _SLOT)
        for model, slot in workers.values():
            found = number(slot)
            if found is not None:
                of_workers.add(found, model.name, slot.name.rpartition(":")[2], model.version)
        yield of_workers
        of_host = Family(f"modelhost_process_{name}", text, kind, _PROCESS)
        for slot in own.values():
            found = number(slot)
            if found is not None:
                of_host.add(found, slot.name)
        yield of_host

    def used(number: Callable[[SlotUsage], float | None]) -> Callable[[SlotStatus], float | None]:
        def of(slot: SlotStatus) -> float | None:
            usage = facts.usage.get(slot.name)
            return None if usage is None else number(usage)

        return of

    yield from both("ready", "Whether it can serve.", "gauge", lambda slot: int(slot.ready))
    yield from both("starts", "Starts; each one but the first is a restart.", "counter", lambda s: starts.get(s.name))
    yield from both("memory_bytes", "Memory in use.", "gauge", used(lambda usage: usage.memory_bytes))
    of_workers, _ = both(
        "memory_limit_bytes", "Memory that it may use.", "gauge", used(lambda usage: usage.memory_limit_bytes or None)
    )
    yield of_workers  # the host's own processes have none
    yield from both("cpu_seconds", "CPU time of all its lives.", "counter", used(lambda usage: usage.cpu_s))
    yield from both(
        "cpu_throttled_periods", "Periods with a quota used up.", "counter", used(lambda usage: usage.throttled)
    )
    yield from both(
        "cpu_throttled_seconds", "Time that a quota took.", "counter", used(lambda usage: usage.throttled_s)
    )


def _deaths(facts: Facts, names: Names) -> Iterator[AnyFamily]:
    text = "Processes that ended without being asked to, by cause."
    versions: dict[tuple[str, str], dict[str, int]] = {
        (model.name, model.version): {} for model in facts.known.status.models
    }
    own: dict[str, Mapping[str, int]] = {slot.name: {} for slot in facts.known.status.host}
    for program, counts in facts.known.deaths.items():
        group = program.partition(":")[0]
        if program in own:
            own[program] = counts
            continue
        seen = versions.setdefault(names(group), {})
        for cause, count in counts.items():
            seen[cause] = seen.get(cause, 0) + count
    of_workers = Family("modelhost_worker_deaths", text, "counter", ("cause", *_VERSION))
    of_host = Family("modelhost_process_deaths", text, "counter", ("cause", *_PROCESS))
    for kind in DeathKind:
        cause = kind.value
        for (model, version), counts in versions.items():
            of_workers.add(counts.get(cause, 0), cause, model, version)
        for process, own_counts in own.items():
            of_host.add(own_counts.get(cause, 0), cause, process)
    yield of_workers
    yield of_host


# -- requests -------------------------------------------------------------------------------------------------
def _requests(fronts: Sets, names: Names) -> Iterator[AnyFamily]:
    # What the front says of the feature processes is no model's, and their answers count as the models'.
    fronts = {group: sets for group, sets in fronts.items() if group != FEATURES_GROUP}
    totals = {group: _total(sets) for group, sets in fronts.items()}
    labelled = [(names(group) if group else ("", ""), totals[group], sets) for group, sets in fronts.items()]

    requests = Family("modelhost_requests", "Requests that ended, by status.", "counter", ("code", *_VERSION))
    refusals = Family(
        "modelhost_refusals",
        "Requests that a front refused, by reason.",
        "counter",
        (*_VERSION[:1], "reason", *_VERSION[1:]),
    )
    for (model, version), total, _ in labelled:
        for code, number in _by_status(total).items():
            requests.add(number, code, model, version)
        for reason in _REASONS:
            refusals.add(total[f"refused_{reason}"], model, reason, version)
    yield requests
    yield refusals
    for name, text, keys in (
        ("cancellations", "Requests whose client went away.", ("cancelled",)),
        ("retries", "Requests sent to another worker because theirs died.", ("retries",)),
        ("requeues", "Requests put back because their worker ended before it ran them.", ("returned",)),
        ("stray_answers", "Answers that nobody waited for.", ("late_answers", "unknown_answers")),
        ("fallbacks", "Requests of a canary that the default answered instead.", ("fell_back",)),
    ):
        family = Family(f"modelhost_{name}", text, "counter", _VERSION)
        for (model, version), total, _ in labelled:
            if model:
                family.add(sum(total[key] for key in keys), model, version)
        yield family
    for name, text, key in (
        ("request_seconds", "From a request's receipt to its answer, of those with a status below 500.", "total_ns"),
        ("queue_seconds", "From a request's receipt to the start of its batch.", "queue_ns"),
        ("batch_wait_seconds", "From when a worker was given a request to the start of its batch.", "batch_wait_ns"),
        ("features_seconds", "What the feature service took to complete a request.", "features_ns"),
    ):
        histogram = HistogramFamily(f"modelhost_{name}", text, _VERSION, SECONDS)
        for (model, version), _, sets in labelled:
            buckets = folded((one.histograms for one in sets), key) if model else None
            # A version without features has none of their times, now and later.
            if buckets is not None and (key != "features_ns" or buckets.counts[-1]):
                histogram.add(buckets, model, version)
        yield histogram


def _by_status(total: Mapping[str, int]) -> dict[str, int]:
    """Status to requests: answered by a worker, the feature service or the front, or refused by the front."""
    counts = {str(status): total[f"answered_{status}"] for status in STATUSES}
    counts["other"] = total["answered_other"]
    for reason, status in _STATUS_OF.items():
        counts[str(status)] += total[f"refused_{reason}"]
    return counts


def _shadows(fronts: Sets, names: Names) -> Iterator[AnyFamily]:
    """Of versions that ever were a shadow; the others have no series."""
    copies = Family("modelhost_shadow_copies", "What became of copies.", "counter", ("model", "result", "version"))
    sent = Family("modelhost_shadow_copies_sent", "Copies sent to a shadow's workers.", "counter", _VERSION)
    ended = Family("modelhost_shadow_copies_ended", "Copies among the requests.", "counter", _VERSION)
    for group, sets in fronts.items():
        if not any(one.values[name] for one in sets for name in ("copies_sent", "copies_shed")):
            continue
        total = _total(sets)
        model, version = names(group)
        for result in _COPIES:
            copies.add(total[f"copies_{result}"], model, result, version)
        sent.add(total["copies_sent"], model, version)
        ended.add(total["copies_ended"], model, version)
    yield from (copies, sent, ended)


# -- workers --------------------------------------------------------------------------------------------------
def _work(workers: Sets, names: Names) -> Iterator[AnyFamily]:
    busy = Family("modelhost_worker_busy_seconds", "Time with a batch in hand.", "counter", _SLOT)
    last = Family("modelhost_worker_last_batch_timestamp_seconds", "When its last batch ended.", "gauge", _SLOT)
    done = Family("modelhost_worker_requests", "Requests that workers ran.", "counter", ("model", "result", "version"))
    steps = Family("modelhost_worker_step_seconds", "Time by step.", "counter", ("model", "step", "version"))
    rows = HistogramFamily("modelhost_batch_rows", "Rows of a batch.", _VERSION, ROWS)
    inference = HistogramFamily("modelhost_inference_seconds", "How long a batch ran.", _VERSION, SECONDS)
    for group, sets in workers.items():
        model, version = names(group)
        for one in sets:
            slot = one.writer.rpartition(":")[2]
            busy.add(one.values["busy_ns"] / _NS_PER_S, model, slot, version)
            if one.values["last_batch_ms"]:
                last.add(one.values["last_batch_ms"] / _MS_PER_S, model, slot, version)
        total = _total(sets)
        for result in ("succeeded", "failed"):
            done.add(total[result], model, result, version)
        for step in _STEPS:
            steps.add(total[f"{step}_ns"] / _NS_PER_S, model, step, version)
        rows.add(folded_rows(total), model, version)
        inference.add(folded((one.histograms for one in sets), "inference_ns"), model, version)
    yield from (busy, last, done, steps, rows, inference)


# -- features -------------------------------------------------------------------------------------------------
def _features(fronts: Sets, services: Sets, views: Sets, stores: Sets) -> Iterator[AnyFamily]:
    requests = Family("modelhost_feature_requests", "Requests completed.", "counter", _PROCESS)
    evictions = Family("modelhost_feature_cache_evictions", "Rows put out of the cache.", "counter", _PROCESS)
    entries = Family("modelhost_feature_cache_rows", "Rows in the cache.", "gauge", _PROCESS)
    size = Family("modelhost_feature_cache_bytes", "Size of the cache.", "gauge", _PROCESS)
    limit = Family("modelhost_feature_cache_limit_bytes", "What the cache may hold.", "gauge", _PROCESS)
    for one in chain.from_iterable(services.values()):
        for family, key in (
            (requests, "completed"),
            (evictions, "evictions"),
            (entries, "entries"),
            (size, "size_bytes"),
            (limit, "capacity_bytes"),
        ):
            family.add(one.values[key], one.writer)
    yield from (requests, evictions, entries, size, limit)
    retries = Family("modelhost_feature_retries", "Requests sent to another process.", "counter")
    asked = fronts.get(FEATURES_GROUP)
    if asked:
        retries.add(_total(asked)["retries"])
    yield retries

    lookups = Family("modelhost_feature_lookups", "Keys asked for, by where from.", "counter", ("result", "view"))
    reads = HistogramFamily("modelhost_feature_read_seconds", "Reads of a store.", ("view",), SECONDS)
    totals = {view: _total(sets) for view, sets in views.items()}
    for view, total in totals.items():
        for result in _LOOKUPS:
            lookups.add(total[result], result, view)
        reads.add(folded((one.histograms for one in views[view]), "query_ns"), view)
    yield from (lookups, reads)
    for name, text, key in (
        ("reads", "Reads sent to the store.", "queries"),
        ("reads_joined", "Keys asked for while their read was on its way.", "joined"),
        ("read_failures", "Reads that failed.", "failures"),
        ("reads_refused", "Reads that the circuit breaker kept from the store.", "refused"),
        ("bad_rows", "Rows of the store that are not as the view says.", "bad_rows"),
    ):
        family = Family(f"modelhost_feature_{name}", text, "counter", ("view",))
        for view, total in totals.items():
            family.add(total[key], view)
        yield family

    openings = Family("modelhost_store_breaker_openings", "How often it opened.", "counter", ("store",))
    is_open = Family("modelhost_store_breaker_open", "Whether it is open.", "gauge", ("process", "store"))
    connected = Family("modelhost_store_connected", "Whether its views can be read.", "gauge", ("process", "store"))
    for store, sets in stores.items():
        openings.add(sum(one.values["openings"] for one in sets), store)
        for one in sets:
            is_open.add(one.values["open"], one.writer, store)
            connected.add(one.values["connected"], one.writer, store)
    yield from (openings, is_open, connected)


def _total(sets: Sequence[CounterSet]) -> dict[str, int]:
    """What all of them have counted together; they have one layout, and so one order."""
    numbers = zip(*(one.values.values() for one in sets), strict=True)
    return dict(zip(sets[0].values, map(sum, numbers), strict=True))
