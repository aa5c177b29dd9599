"""Traffic on a fleet while a test does things to it, and what became of each request.

with Traffic(fleet, [Target(name="churn", url=..., body=...)]) as traffic:
    ... fleet.run_in_controller(["ansible-playbook", ...])
    traffic.wait_for(lambda request: request.version == "4", "an answer of version 4")
    report = traffic.stop()
assert not report.failures, report
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from fleet import Fleet
from load import END_LIMIT_S, Request, Target

SHOWN: Final = 10
"""Failures that a report's text has in full."""


@dataclass(frozen=True, slots=True)
class Report:
    """Every request, in the order in which they were over."""

    requests: tuple[Request, ...]

    @property
    def failures(self) -> tuple[Request, ...]:
        """Those that were not answered with 200."""
        return tuple(request for request in self.requests if request.status != 200)

    @property
    def lag_s(self) -> float:
        """How much later than planned a request was sent at most: what the load's own machine is to blame for."""
        return max((request.sent_s - request.planned_s for request in self.requests), default=0.0)

    def of(self, target: str) -> Report:
        """Give the part about one target."""
        return Report(tuple(request for request in self.requests if request.target == target))

    def between(self, start_s: float, end_s: float = float("inf")) -> Report:
        """Give the part that was sent in a time, by the monotonic clock."""
        return Report(tuple(request for request in self.requests if start_s <= request.sent_s < end_s))

    def count(self, what: Callable[[Request], str | None]) -> Counter[str | None]:
        """Count requests by something of them: `report.count(lambda request: request.host)`."""
        return Counter(what(request) for request in self.requests)

    def latency_s(self, quantile: float) -> float:
        """Give the latency, since the planned time, that so large a part of the answered requests kept within."""
        latencies = sorted(request.done_s - request.planned_s for request in self.requests if request.status == 200)
        return latencies[min(len(latencies) - 1, int(quantile * len(latencies)))] if latencies else float("nan")

    def __str__(self) -> str:
        failures = self.failures
        first_s = self.requests[0].sent_s if self.requests else 0.0
        lines = [
            f"{len(self.requests)} requests, {len(failures)} failed; latency p50 {self.latency_s(0.5) * 1000:.1f} ms, "
            f"p99 {self.latency_s(0.99) * 1000:.1f} ms, longest {self.latency_s(1) * 1000:.1f} ms; "
            f"sent late by at most {self.lag_s * 1000:.0f} ms"
        ]
        lines += [
            f"  {number} x {error}" for error, number in Counter(each.error for each in failures).most_common(SHOWN)
        ]
        lines += [
            f"  {each.target} at {each.sent_s - first_s:.3f} s, after {each.done_s - each.sent_s:.3f} s, "
            f"host {each.host}: {each.error}"
            for each in failures[:SHOWN]
        ]
        return "\n".join(lines)


class Traffic:
    """The load, from the beginning of a `with` block to `stop`."""

    def __init__(self, fleet: Fleet, targets: Sequence[Target], *, name: str = "load") -> None:
        self._fleet = fleet
        self._targets = fleet.directory / f"{name}.targets.json"
        self._records = fleet.directory / f"{name}.records.jsonl"
        self._log = fleet.directory / f"{name}.log"
        self._targets.write_text(json.dumps([asdict(target) for target in targets]))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._records.unlink(missing_ok=True)
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("load.py"), self._targets, self._records]
        self._process = self._fleet.start_in_controller(command, log=self._log)
        try:
            self.wait_for(lambda request: True, "the first request")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def so_far(self) -> Report:
        """Give what is known by now."""
        text = self._records.read_text() if self._records.exists() else ""
        return Report(tuple(Request(**json.loads(line)) for line in text.splitlines(keepends=True) if line[-1] == "\n"))

    def wait_for(self, matches: Callable[[Request], bool], what: str, limit_s: float = 30.0) -> Request:
        """Wait for a request that is over from now on and matches; give it."""
        deadline = time.monotonic() + limit_s
        since = self._records.stat().st_size if self._records.exists() else 0
        while True:
            assert self._process is not None and self._process.poll() is None, self._log.read_text()
            if self._records.exists():
                with self._records.open() as records:
                    records.seek(since)
                    new = records.read().rpartition("\n")[0]
                for line in new.splitlines():
                    since += len(line) + 1
                    if matches(request := Request(**json.loads(line))):
                        return request
            assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}\n{self.so_far()}"
            time.sleep(0.01)

    def stop(self) -> Report:
        """Send no more, wait for those on their way and give the whole report."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(END_LIMIT_S + 15)
        assert code == 0, f"the load ended with {code}:\n{self._log.read_text()}"
        return self.so_far()
