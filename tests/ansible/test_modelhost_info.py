"""`modelhost_info` against a command line that answers what each test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from module_runs import Stub, load, run_module, stub_in

from host.control.status import HostStatus, ModelStatus, SlotStatus, Traffic, Usage, VersionState
from host.protocol.latency import Latencies, LatencyHistogram, quantile_ns, since

module = load("modelhost_info")


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    """Give a command line."""
    return stub_in(tmp_path)


def slot(number: int, **fields: Any) -> SlotStatus:
    told = {"state": "RUNNING", "pid": 70 + number, "ready": True, "since": 1.0, "uptime_s": 2.0, "restarts": 0}
    return SlotStatus(name=f"churn.v3:{number}", **{**told, "last_exit": None, **fields})


def version(name: str = "3", **fields: Any) -> ModelStatus:
    told = {"name": "churn", "default": True, "wanted": 2, "ready": 2, "slots": (slot(0), slot(1)), **fields}
    return ModelStatus(version=name, **told)


def status(*models: ModelStatus, **fields: Any) -> dict[str, Any]:
    """The document of `modelhost status --json`, made of the real thing."""
    told = {"ready": True, "wanted": 2, "ready_processes": 2, "host": (), "unwanted": (), "generation": 5, **fields}
    return {"running": True} | msgspec.json.decode(msgspec.json.encode(HostStatus(models=models, **told)))


def asked(stub: Stub, **options: Any) -> dict[str, Any]:
    return run_module(module, command=stub.path, config="/c.toml", **options)


def test_says_what_runs(stub: Stub) -> None:
    histogram = LatencyHistogram()
    for milliseconds in range(1, 101):
        histogram.add(milliseconds * 1_000_000)
    traffic = Traffic(answered=100, failed=25, waiting=3, latency=histogram.read())
    usage = Usage(memory_bytes=1000, memory_limit_bytes=0, cpu_s=0.0)
    slots = (slot(0, usage=usage, deaths={"oom": 1, "signal": 2}), slot(1, pid=0, ready=False, state="BACKOFF"))
    given_up = version("4", state=VersionState.FAILED, reason="no such weights", slots=(), ready=0, default=False)
    document = status(version(traffic=traffic, slots=slots, ready=1), given_up, ready=False, settled=False)
    stub.answers(version={"out": "modelhost, version 0.3.1\n"}, status={"document": document, "code": 1})
    result = asked(stub)
    three, four = result.pop("models")
    assert {key: value for key, value in result.items() if key != "invocation"} == {
        "failed": False, "changed": False, "running": True, "ready": False, "settled": False, "generation": 5,
        "reason": "", "release": "0.3.1",
    }  # fmt: skip
    assert 85 < three.pop("p90_ms") < 95 and 45 < three.pop("p50_ms") < 55 and 93 < three.pop("p99_ms") < 105
    assert three == {
        "name": "churn", "version": "3", "default": True, "state": "serving", "wanted": 2, "ready": 1, "pids": [70],
        "reason": "", "requests": 125, "failed": 25, "failed_percent": 20.0, "waiting": 3, "deaths": 3,
        "memory_bytes": 1000,
    }  # fmt: skip
    assert four == {
        "name": "churn", "version": "4", "default": False, "state": "failed", "wanted": 2, "ready": 0, "pids": [],
        "reason": "no such weights", "requests": None, "failed": None, "failed_percent": None, "waiting": None,
        "deaths": 0, "memory_bytes": 0, "p50_ms": None, "p90_ms": None, "p99_ms": None,
    }  # fmt: skip
    (call,) = stub.calls("status")
    assert call["argv"] == ["status", "--json", "--config", "/c.toml"]


def test_a_version_without_requests_has_no_times(stub: Stub) -> None:
    traffic = Traffic(answered=0, failed=0, waiting=0, latency=Latencies())
    stub.answers(version={"out": "modelhost, version 1"}, status={"document": status(version(traffic=traffic))})
    (model,) = asked(stub)["models"]
    assert (model["requests"], model["failed"], model["failed_percent"], model["p90_ms"]) == (0, 0, None, None)


@pytest.mark.parametrize("required", [False, True])
def test_a_host_that_is_down_is_no_failure_unless_required(stub: Stub, required: bool) -> None:
    down = {"running": False, "ready": False, "reason": "no host runs in /run/m; start it with: modelhost up"}
    stub.answers(version={"out": "modelhost, version 1"}, status={"document": down, "code": 1})
    result = asked(stub, required=required)
    assert (result["failed"], result["running"], result["ready"], result["models"]) == (required, False, False, [])
    assert (result["settled"], result["generation"], result["release"]) == (None, None, "1")
    assert result["reason"] == down["reason"]
    assert not required or result["msg"] == down["reason"]


@pytest.mark.parametrize("required", [False, True])
def test_a_control_that_does_not_answer_is_told_of(stub: Stub, required: bool) -> None:
    mute = {"running": True, "ready": False, "reason": "control does not answer on /run/m/control.sock"}
    stub.answers(version={"out": "modelhost, version 1"}, status={"document": mute, "code": 1})
    result = asked(stub, required=required)
    assert (result["failed"], result["running"], result["ready"], result["models"]) == (required, True, False, [])
    assert (result["settled"], result["generation"], result["reason"]) == (None, None, mute["reason"])


@pytest.mark.parametrize(
    ("answers", "release", "reason"),
    [
        ({"version": {"code": 1, "err": "no module"}}, None, "--version ended with exit code 1: no module"),
        ({"version": {"out": ""}}, None, "--version ended with exit code 0: nothing said"),
        ({"version": {"hangs": True}}, None, "--version did not end within"),
        ({"version": {"out": "modelhost, version 1"}, "status": {"code": 2, "err": "m.toml: bad"}}, "1", "m.toml: bad"),
    ],
)
def test_a_command_that_does_not_answer_is_told_of(
    stub: Stub, answers: dict[str, Any], release: str | None, reason: str
) -> None:
    stub.answers(**answers)
    result = asked(stub, timeout_s=1 if answers["version"].get("hangs") else 60)
    assert (result["failed"], result["running"], result["release"]) == (False, False, release)
    assert reason in result["reason"]


def test_a_host_without_modelhost_is_told_of(tmp_path: Path) -> None:
    result = run_module(module, command=str(tmp_path / "none"))
    assert (result["failed"], result["running"], result["release"]) == (False, False, None)
    assert "is modelhost installed on this host?" in result["reason"]


# -- latency, as the host reads it --------------------------------------------------------------------------------
COUNTS = st.dictionaries(st.integers(0, 400), st.integers(1, 1000), max_size=20)


@given(COUNTS, st.floats(0, 1))
def test_quantiles_are_those_of_the_host(counts: dict[int, int], quantile: float) -> None:
    expected_ns = quantile_ns(Latencies(0, counts), quantile)
    found_ms = load_client().quantile_ms(counts, quantile)
    assert (found_ms is None) == (expected_ns is None)
    assert found_ms is None or found_ms == pytest.approx((expected_ns or 0.0) / 1e6, abs=1e-6)


@given(COUNTS, COUNTS, st.booleans())
def test_what_came_between_is_what_the_host_says(before: dict[int, int], now: dict[int, int], grows: bool) -> None:
    if grows:
        now = {bucket: before.get(bucket, 0) + now.get(bucket, 0) for bucket in {*before, *now}}
    assert load_client().counts_since(before, now) == since(Latencies(0, before), Latencies(0, now)).counts


def load_client() -> Any:
    from ansible.module_utils import modelhost_client

    return modelhost_client
