"""The admin port of a real host, and its metrics."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from clients import doubled
from hosts import CHECKOUT, RunningHost, until
from packages import UNHURRIED, write_fragile, write_package
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.counting import CODE, MODELS, ask_and_kill, counted, differences, scrape
from host.protocol.package import golden_cases

pytestmark = pytest.mark.integration


# -- the admin port -------------------------------------------------------------------------------------------
def test_the_admin_port_tells_this_machine_what_runs(host: RunningHost) -> None:
    answer = host.admin("/status")
    assert answer.status == 200
    assert json.loads(answer.body)["ready"] is True


def test_a_page_of_somebody_else_reads_nothing(host: RunningHost) -> None:
    for path in ("/status", "/metrics", "/nothing"):
        assert host.admin(path, {"Host": "rebound.example"}).error == (403, "FOREIGN_HOST")
        assert host.admin(path, {"Host": "localhost:1"}).status == (404 if path == "/nothing" else 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_is_changed_by_the_admin_port(host: RunningHost, method: str) -> None:
    for path in ("/status", "/metrics"):
        assert host.admin(path, method=method).status == 405


# -- what is exposed ------------------------------------------------------------------------------------------
ELSEWHERE = {
    "modelhost_canary_percent",
    "modelhost_shadow_percent",
    "modelhost_shadow_copies_total",
    "modelhost_shadow_copies_sent_total",
    "modelhost_shadow_copies_ended_total",
}
"""Only of canaries and shadows."""


def test_the_documentation_is_what_a_host_exposes(host: RunningHost) -> None:
    for model in ("breast_cancer", "breast_cancer_by_id"):
        request = golden_cases(host.repository / model / "1")[0].request
        assert host.infer(model, request).status == 200
    document = (CHECKOUT / "docs" / "metrics.md").read_text()
    documented = dict(re.findall(r"^\| `(modelhost_\w+)` \| (\w+) \|", document, re.MULTILINE))

    def exposed() -> dict[str, str]:
        text = host.admin("/metrics").body.decode()
        return {
            (f"{family.name}_total" if family.type == "counter" else family.name): family.type
            for family in text_string_to_metric_families(text)
        }

    # What of a process nothing is known yet follows.
    until(lambda: documented.keys() - exposed().keys() <= ELSEWHERE, "everything is exposed")
    found = exposed()
    assert found.items() <= documented.items()
    assert documented.keys() - found.keys() == ELSEWHERE


def test_both_formats_on_both_ways(host: RunningHost) -> None:
    plain = host.admin("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    openmetrics = host.admin("/metrics", {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(openmetrics.body.decode())} == {
        family.name for family in text_string_to_metric_families(plain.body.decode())
    }
    assert "modelhost_build_info" in scrape(host.run_dir.control_socket)


# -- what is counted ------------------------------------------------------------------------------------------
def numbers(host: RunningHost) -> dict[tuple[str, str], float]:
    """Every counter of the host: name and labels to number."""
    text = until(lambda: text_or_none(host), "control answers") or ""
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.type in ("counter", "histogram")
    }


def text_or_none(host: RunningHost) -> str | None:
    try:
        answer = host.admin("/metrics")
    except OSError:
        return None
    return answer.body.decode() if answer.status == 200 else None


def test_no_counter_runs_backwards_whoever_dies(repository: Path, make_host: Callable[..., RunningHost]) -> None:
    write_fragile(repository)
    host = make_host(repository, fronts=2)
    host.start()
    for value in range(1, 6):
        assert host.infer("fragile", doubled(value)).status == 200
    assert host.infer("fragile", doubled(13)).status == 500
    before = numbers(host)
    labels = json.dumps({"code": "200", "model": "fragile", "version": "1"})
    assert before["modelhost_requests_total", labels] == 5
    [worker] = host.worker_pids("fragile").values()
    control = next(pid for pid, words in host.pids().items() if "host.control" in words)
    for pid in (worker, host.front_pids()[0], control):
        os.kill(pid, signal.SIGKILL)
    until(lambda: host.worker_pids("fragile").get(0, worker) != worker and host.is_ready("fragile"), "it is back", 30.0)
    until(lambda: len(host.front_pids()) == 2, "the front is back", 30.0)
    # Without cgroups that add CPU time up, it is of those lives that this control has seen.
    unkept = {"modelhost_worker_cpu_seconds_total", "modelhost_process_cpu_seconds_total"}
    before = {(name, labels): value for (name, labels), value in before.items() if name not in unkept}
    # What the new control says first may not be everything yet; but what it says is never less than before.
    after: dict[tuple[str, str], float] = {}
    deadline_s = time.monotonic() + 30.0
    while not before.keys() <= after.keys():
        assert time.monotonic() < deadline_s, before.keys() - after.keys()
        after = numbers(host)
        assert {key: (before[key], after[key]) for key in before if after.get(key, before[key]) < before[key]} == {}
    died = json.dumps({"cause": "signal", "model": "fragile", "version": "1"})
    until(lambda: numbers(host)["modelhost_worker_deaths_total", died] == 1, "the death is counted")


async def test_the_sum_over_everything_is_what_clients_counted(
    repository: Path, make_host: Callable[..., RunningHost]
) -> None:
    for model in MODELS:
        write_package(
            repository,
            model,
            CODE,
            inputs=[("x", "FP64", [-1, 1])],
            outputs=[("y", "FP64", [-1, 1])],
            limits=UNHURRIED,
        )
    host = make_host(repository, fronts=2, processes=dict.fromkeys(MODELS, 2))
    await asyncio.to_thread(host.start)

    def workers() -> list[int]:
        return [pid for model in MODELS for pid in host.worker_pids(model).values()]

    seen, killed = await ask_and_kill(host.port, MODELS, 20_000, workers, every_s=0.5)
    said = counted(await asyncio.to_thread(scrape, host.run_dir.control_socket), MODELS)
    assert killed
    assert seen.lost == 0
    assert sum(seen.counts.values()) == 20_000
    assert differences(seen.counts, said) == {}
