"""A real Prometheus scrapes a real host, and the rules of the monitoring role fire."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from features import ask_for, write_echo, write_features, write_plain
from hosts import CHECKOUT, Host, RunningHost, tensors, until
from packages import write_package
from probing import told, write_probing
from prometheus_server import PrometheusServer

from host.control.status import VersionState

pytestmark = pytest.mark.integration

RULES = CHECKOUT / "ansible" / "roles" / "monitoring" / "files" / "modelhost.rules.yml"
FIRES_S = 60.0
SLEEPY = """
import time

class Model:
    def load(self, package):
        time.sleep({load_s})

    def predict(self, inputs):
        time.sleep(0.3)
        return {{"y": inputs["x"]}}
"""
X: dict[str, Any] = tensors(x=("FP64", [1, 1], [1.0]))


def at_once(rules: str) -> str:
    """The same rules, without the time for which something must be so; what they look at stays."""
    return re.sub(r"^(\s+for: )\S+$", r"\g<1>0s", rules, flags=re.MULTILINE)


def write_sleepy(repository: Path, version: str, load_s: float) -> None:
    write_package(
        repository,
        "sleepy",
        SLEEPY.format(load_s=load_s),
        version=version,
        inputs=[("x", "FP64", [-1, 1])],
        outputs=[("y", "FP64", [-1, 1])],
        limits={"max_queue": 1, "max_batch_rows": 1, "startup_s": 600},
        resources={"memory": "128MiB"},
    )


@contextmanager
def flooded(host: Host, model: str, clients: int = 12) -> Iterator[None]:
    """Ask more than it can answer."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            # What is refused is asked again a moment later, as clients do.
            if host.infer(model, X).status == 503:
                stop.wait(0.05)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@pytest.mark.timeout(900)  # more than all of its limits that can come together
def test_the_rules_fire(repository: Path, make_host: Callable[..., RunningHost], tmp_path: Path) -> None:
    write_probing(repository, resources={"memory": "150MiB"})
    write_plain(repository)
    write_echo(repository)
    write_features(repository)
    write_sleepy(repository, "1", load_s=0.0)
    host = make_host(repository)
    host.start()
    with PrometheusServer(tmp_path, at_once(RULES.read_text()), [f"127.0.0.1:{host.admin_port}"]) as prometheus:

        def fires(name: str) -> None:
            until(lambda: name in prometheus.firing(), f"{name} fires", FIRES_S)

        def ceases(name: str) -> None:
            until(lambda: name not in prometheus.firing(), f"{name} ceases", FIRES_S)

        # 1. all is well
        until(lambda: prometheus.query("modelhost_ready == 1"), "the host is scraped and ready", FIRES_S)

        def is_up() -> bool:
            [target] = prometheus.targets()
            return (target["health"], target["lastError"]) == ("up", "")

        until(is_up, "a scrape succeeds", FIRES_S)
        until(lambda: not prometheus.firing(), "nothing fires", FIRES_S)

        # 2. model not ready
        host.supervisorctl("stop", "plain.v1:0")
        fires("ModelhostModelUnavailable")
        host.supervisorctl("start", "plain.v1:0")
        ceases("ModelhostModelUnavailable")

        # 3. out of memory, again and again
        for count in (1, 2, 3):
            until(lambda: host.is_ready("probing"), "the worker is back", 30.0)
            assert told(host, "allocate")[0] == 502
            until_died(host, "probing", count)
        fires("ModelhostWorkerOutOfMemoryLoop")
        assert "ModelhostWorkerDeathLoop" not in prometheus.firing()

        # 4. more requests than can be answered
        with flooded(host, "sleepy"):
            fires("ModelhostQueueShedding")

        # 5. the store is gone
        store = repository / "features.sqlite"
        store.rename(store.with_suffix(".away"))
        users = iter(range(1, 10_000))
        until(
            lambda: host.infer("echo", ask_for(next(users))) and "ModelhostStoreDown" in prometheus.firing(),
            "ModelhostStoreDown fires",
            FIRES_S,
        )
        store.with_suffix(".away").rename(store)
        until(
            lambda: host.infer("echo", ask_for(next(users))) and "ModelhostStoreDown" not in prometheus.firing(),
            "ModelhostStoreDown ceases",
            FIRES_S,
        )

        # 6. a rollout that does not come to its end
        write_sleepy(repository, "2", load_s=600.0)
        text = host.deployment_file.read_text()
        host.deployment_file.write_text(text.replace('name = "sleepy"\n', 'name = "sleepy"\nversion = "2"\n'))
        applied = host.command("apply")
        assert applied.returncode == 0, applied.stderr
        fires("ModelhostRolloutStuck")
        states = {(model.version, model.state) for model in host.status().models if model.name == "sleepy"}
        assert ("2", VersionState.STARTING) in states

        assert prometheus.rule_problems() == []

        # 7. the host is gone
        os.kill(host.up_pid, signal.SIGINT)
        assert host.wait_for_end() == 0
        fires("ModelhostDown")


def until_died(host: RunningHost, model: str, count: int) -> None:
    """Wait until control knows of so many deaths."""

    def deaths() -> int:
        slots = [slot for one in host.status().models if one.name == model for slot in one.slots]
        return sum(sum(slot.deaths.values()) for slot in slots)

    until(lambda: deaths() == count, f"{count} deaths of {model} are known", 30.0)
