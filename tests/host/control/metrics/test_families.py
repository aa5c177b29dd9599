from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Sample

from host.control.metrics.exposition import negotiated, text_of
from host.control.metrics.facts import Facts, Known, SlotUsage
from host.control.metrics.families import families
from host.control.metrics.family import BOUNDS_NS, ROWS, SECONDS, Family, HistogramFamily, folded, folded_rows
from host.control.status import HostStatus, ModelStatus, SlotStatus, VersionState
from host.protocol.counters import (
    BATCH_ROWS,
    FEATURES,
    FRONT,
    LAYOUTS,
    STORE,
    VIEW,
    WORKER,
    CounterSet,
    Histograms,
    Layout,
    private_counters,
)
from host.protocol.latency import BUCKETS, LatencyHistogram, bounds_ns

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "metrics.md"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def slot(name: str, *, ready: bool = True) -> SlotStatus:
    return SlotStatus(
        name=name, state="RUNNING", pid=1, ready=ready, since=1.0, uptime_s=1.0, restarts=0, last_exit=None
    )


def counted(layout: Layout, writer: str, group: str, *times_ns: int, **values: int) -> CounterSet:
    names = (*layout.values, *layout.gauges)
    assert values.keys() <= set(names)
    return CounterSet(
        kind=layout.kind,
        writer=writer,
        group=group,
        values=dict.fromkeys(names, 0) | values,
        histograms=histograms(layout, *times_ns),
    )


def histograms(layout: Layout, *times_ns: int) -> Histograms:
    """These times in each of a layout's histograms."""
    words = private_counters(layout)
    for name in layout.histograms:
        histogram = LatencyHistogram(words, layout.at(name))
        for time_ns in times_ns:
            histogram.add(time_ns)
    return Histograms(layout, words.tobytes())


def facts(*counters: CounterSet, unreadable: Iterable[str] = (), **usage: SlotUsage) -> Facts:
    status = HostStatus(
        ready=True,
        wanted=2,
        ready_processes=1,
        models=(
            ModelStatus(
                name="churn",
                version="3.v2",
                default=True,
                wanted=2,
                ready=1,
                slots=(slot("churn.v3.v2:0"), slot("churn.v3.v2:1", ready=False)),
                state=VersionState.REPLACED,
            ),
        ),
        host=(slot("front:0"), slot("control")),
        unwanted=(),
        generation=7,
        settled=False,
    )
    known = Known(
        status=status,
        deaths={"churn.v3.v2:0": {"oom": 2}, "churn.v3.v2:5": {"oom": 1, "hang": 1}, "front:0": {"signal": 4}},
        starts={"churn.v3.v2:0": 3, "front:0": 1},
        beside={"canary": {"churn.v3.v2": 5}},
        unreadable=frozenset(unreadable),
    )
    return Facts(known=known, counters=counters, usage=usage, complaints=0, release="0.9", python="3.11")


def samples(given: Facts) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of their names, to the number; as the parser of the text format reads it."""
    text = text_of(families(given), CONTENT_TYPE_LATEST).decode()
    found: dict[tuple[str, ...], float] = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in sorted(sample.labels)))
            assert key not in found, "each series once"
            found[key] = sample.value
    return found


EVERYTHING = (
    counted(
        FRONT, "front:0", "churn.v3.v2", 1_000_000, answered_200=5, refused_QUEUE_FULL=2, cancelled=1, copies_sent=1
    ),
    counted(FRONT, "front:1", "churn.v3.v2", 3_000_000, answered_200=4, answered_503=1, retries=1),
    counted(FRONT, "front:0", "", answered_200=9, refused_UNKNOWN_MODEL=3),
    counted(FRONT, "front:0", "features", retries=4),
    counted(FRONT, "front:0", "gone.v1", 50_000, answered_200=100),
    counted(WORKER, "churn.v3.v2:0", "churn.v3.v2", 2_000_000, rows=3, batches_of_4_rows=1, busy_ns=2_500_000_000),
    counted(WORKER, "churn.v3.v2:1", "churn.v3.v2", rows=1, batches_of_1_rows=1, last_batch_ms=1_500),
    counted(FEATURES, "features:0", "", completed=8, entries=3),
    counted(VIEW, "features:0", "customers", 700_000, fresh=6, unavailable=1, queries=2),
    counted(STORE, "features:0", "profiles", openings=2, open=1),
)


# -- documentation --------------------------------------------------------------------------------------------
def documented() -> dict[str, tuple[str, set[str]]]:
    """Name to type and labels, from the tables."""
    rows = [line.split("|")[1:4] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `modelhost_")]
    found = {
        name.strip(" `"): (kind.strip(), set(labels.replace("`", " ").replace(",", " ").split()))
        for name, kind, labels in rows
    }
    assert len(found) == len(rows), "each metric stands once"
    return found


def test_every_metric_is_documented_and_none_else() -> None:
    made = {}
    for family in families(facts()):
        name = family.name if isinstance(family, HistogramFamily) else family.sample_name
        made[name] = (family.type, set(family.label_names))
    assert made == documented()


def test_label_names_are_in_order_and_few() -> None:
    for family in families(facts()):
        assert list(family.label_names) == sorted(family.label_names)
        assert set(family.label_names) <= {
            *("model", "version", "slot", "process", "view", "store"),
            *("code", "reason", "cause", "state", "result", "step", "python"),
        }


# -- numbers --------------------------------------------------------------------------------------------------
def test_fronts_are_added_up() -> None:
    found = samples(facts(*EVERYTHING))
    assert found["modelhost_requests_total", "200", "churn", "3.v2"] == 9
    assert found["modelhost_requests_total", "503", "churn", "3.v2"] == 3, "answered and refused"
    assert found["modelhost_refusals_total", "churn", "QUEUE_FULL", "3.v2"] == 2
    assert found["modelhost_cancellations_total", "churn", "3.v2"] == 1
    assert found["modelhost_retries_total", "churn", "3.v2"] == 1
    assert found["modelhost_request_seconds_count", "churn", "3.v2"] == 2
    assert found["modelhost_request_seconds_sum", "churn", "3.v2"] == pytest.approx(0.004)
    assert found["modelhost_requests_total", "404", "", ""] == 3, "no model"
    assert found["modelhost_requests_total", "200", "gone", "1"] == 100, "what is gone was answered all the same"


def test_every_request_is_counted_once() -> None:
    ends = [name for name in FRONT.values if name.startswith(("answered_", "refused_"))]
    one = counted(FRONT, "front:0", "churn.v3.v2", **dict.fromkeys(ends, 1))
    found = samples(facts(one))
    assert sum(number for key, number in found.items() if key[0] == "modelhost_requests_total") == len(ends)


def test_workers_by_slot_and_version() -> None:
    found = samples(facts(*EVERYTHING))
    assert found["modelhost_worker_busy_seconds_total", "churn", "0", "3.v2"] == 2.5
    assert found["modelhost_worker_last_batch_timestamp_seconds", "churn", "1", "3.v2"] == 1.5
    assert ("modelhost_worker_last_batch_timestamp_seconds", "churn", "0", "3.v2") not in found
    assert found["modelhost_batch_rows_count", "churn", "3.v2"] == 2
    assert found["modelhost_batch_rows_sum", "churn", "3.v2"] == 4
    assert found["modelhost_batch_rows_bucket", "2.0", "churn", "3.v2"] == 1
    assert found["modelhost_worker_ready", "churn", "1", "3.v2"] == 0
    assert found["modelhost_worker_starts_total", "churn", "0", "3.v2"] == 3
    assert ("modelhost_worker_starts_total", "churn", "1", "3.v2") not in found


def test_deaths_of_all_slots_by_cause() -> None:
    found = samples(facts())
    assert found["modelhost_worker_deaths_total", "oom", "churn", "3.v2"] == 3
    assert found["modelhost_worker_deaths_total", "hang", "churn", "3.v2"] == 1
    assert found["modelhost_worker_deaths_total", "golden", "churn", "3.v2"] == 0
    assert found["modelhost_process_deaths_total", "signal", "front:0"] == 4


def test_where_a_version_stands() -> None:
    found = samples(facts(unreadable=["churn.v3.v2"]))
    states = {state: found["modelhost_version_state", "churn", state.value, "3.v2"] for state in VersionState}
    assert states == {state: state is VersionState.REPLACED for state in VersionState}
    assert found["modelhost_workers_desired", "churn", "3.v2"] == 2
    assert found["modelhost_workers_ready", "churn", "3.v2"] == 1
    assert found["modelhost_canary_percent", "churn", "3.v2"] == 5
    assert ("modelhost_shadow_percent", "churn", "3.v2") not in found
    assert found["modelhost_features_unreadable", "churn", "3.v2"] == 1
    assert (found[("modelhost_settled",)], found[("modelhost_generation",)]) == (0, 7)


def test_usage() -> None:
    usage = SlotUsage(memory_bytes=5, memory_limit_bytes=10, cpu_s=1.25, throttled=2, throttled_s=0.5)
    found = samples(
        facts(**{"churn.v3.v2:0": usage, "churn.v3.v2:1": usage._replace(memory_limit_bytes=0), "front:0": usage})
    )
    assert found["modelhost_worker_memory_bytes", "churn", "0", "3.v2"] == 5
    assert found["modelhost_worker_memory_limit_bytes", "churn", "0", "3.v2"] == 10
    assert found["modelhost_worker_cpu_throttled_periods_total", "churn", "0", "3.v2"] == 2
    assert found["modelhost_process_cpu_seconds_total", "front:0"] == 1.25
    assert ("modelhost_worker_memory_limit_bytes", "churn", "1", "3.v2") not in found, "there is none"


def test_features() -> None:
    found = samples(facts(*EVERYTHING))
    assert found["modelhost_feature_lookups_total", "fresh", "customers"] == 6
    assert found["modelhost_feature_read_seconds_count", "customers"] == 1
    assert found["modelhost_store_breaker_open", "features:0", "profiles"] == 1
    assert found["modelhost_feature_requests_total", "features:0"] == 8
    assert found[("modelhost_feature_retries_total",)] == 4
    assert not [key for key in found if key[0] == "modelhost_retries_total" and "features" in key], "it is no model"


# -- histograms -----------------------------------------------------------------------------------------------
def test_bounds_are_ends_of_buckets() -> None:
    ends = {bounds_ns(bucket)[1] for bucket in range(BUCKETS)}
    assert set(BOUNDS_NS) <= ends
    assert len(BOUNDS_NS) == len(set(BOUNDS_NS)) == len(SECONDS) - 1
    assert list(BOUNDS_NS) == sorted(BOUNDS_NS)
    assert [float(text) for text in SECONDS[:-1]] == [bound / 1e9 for bound in BOUNDS_NS]


@pytest.mark.parametrize("bound", [BOUNDS_NS[0], BOUNDS_NS[1], BOUNDS_NS[17], BOUNDS_NS[-1]])
def test_folding_is_exact_at_the_bounds(bound: int) -> None:
    buckets = folded([histograms(VIEW, 0, 1, bound - 1, bound, bound + 1, 1 << 62)], "query_ns")
    assert buckets.counts[BOUNDS_NS.index(bound)] == 3, "those below it"
    assert buckets.counts[-1] == 6
    assert len(buckets.counts) == len(SECONDS)


def test_folding_adds_up() -> None:
    buckets = folded([histograms(VIEW, 8, 9, 5_000_000_000), histograms(VIEW), histograms(VIEW, 1)], "query_ns")
    assert (buckets.counts[0], buckets.counts[-1]) == (3, 4)
    assert buckets.total == 5.000000018
    assert folded([], "query_ns").counts == [0] * len(SECONDS)


@given(st.lists(st.integers(0, 1 << 57), max_size=50))  # the sum is a word of 64 bits: 292 years and more
def test_folding_loses_nothing(times_ns: list[int]) -> None:
    buckets = folded([histograms(VIEW, *times_ns)], "query_ns")
    assert buckets.counts == [*(sum(one < bound for one in times_ns) for bound in BOUNDS_NS), len(times_ns)]


def test_rows_of_batches() -> None:
    values = dict.fromkeys(WORKER.values, 0) | {"rows": 70_000, "batches_of_1_rows": 1, "batches_of_65536_rows": 2}
    buckets = folded_rows(values)
    assert len(buckets.counts) == len(BATCH_ROWS) == len(ROWS)
    assert (buckets.counts[0], buckets.counts[-2], buckets.counts[-1], buckets.total) == (1, 1, 3, 70_000)


# -- the text -------------------------------------------------------------------------------------------------
def strange() -> list[Family | HistogramFamily]:
    number = Family("modelhost_x", 'with "quotes", a \\ and\na second line', "gauge", ("a", "b"))
    for value in (0, 1, -1.5, 1 << 53, 123456789.25, float("inf")):
        number.add(value, f'{value}"\\\n', "")
    counter = Family("modelhost_c", "counts", "counter")
    counter.add(3)
    histogram = HistogramFamily("modelhost_h_seconds", "h", ("model",), SECONDS)
    histogram.add(folded([histograms(VIEW, 5, 6, 1 << 60)], "query_ns"), 'm"')
    return [number, counter, histogram]


@pytest.mark.parametrize("accept", ["", "text/plain;version=0.0.4;q=0.3", "application/openmetrics-text;version=1.0.0"])
def test_prometheus_own_parsers_read_what_is_written(accept: str) -> None:
    content_type = negotiated(accept)
    is_openmetrics = content_type.startswith("application/openmetrics-text")
    assert is_openmetrics is accept.startswith("application/openmetrics")
    parse = parse_openmetrics if is_openmetrics else parse_text
    for made in (strange(), list(families(facts(*EVERYTHING)))):
        expected = [sample for family in made for sample in family.samples]
        read = [sample for family in parse(text_of(made, content_type).decode()) for sample in family.samples]
        assert _plain(read) == _plain(expected)
        types = {family.name: family.type for family in parse(text_of(made, content_type).decode())}
        assert types == {family.name: family.type for family in made if family.rows}


def _plain(given: Iterable[Sample]) -> list[tuple[str, dict[str, str], float]]:
    found = [(sample.name, dict(sample.labels), float(sample.value)) for sample in given]
    return sorted(found, key=lambda one: (one[0], sorted(one[1].items())))


def test_all_layouts_are_read() -> None:
    """A new layout is exposed, or it is said here why not."""
    assert set(LAYOUTS) == {one.kind for one in EVERYTHING}
