"""A real Prometheus for one test: Debian's binary, on a free port of this machine, with data of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from hosts import until

REQUIRED = os.environ.get("CI_REQUIRE_PROMETHEUS") == "1"
START_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
CALL_LIMIT_S = 10.0


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where there is none and none must be."""
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: prometheus)"
        if REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class PrometheusServer:
    """Scrapes targets every second and evaluates rules as often."""

    def __init__(self, directory: Path, rules: str, targets: Sequence[str]) -> None:
        """`rules`: the text of a rule file; `targets`: addresses, as `127.0.0.1:8081`."""
        self._binary = program("prometheus")
        self._directory = directory
        # Bound and never listening: nobody else gets the port before Prometheus does.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]
        (directory / "modelhost.rules.yml").write_text(rules)
        listed = json.dumps([{"targets": list(targets)}])
        (directory / "targets.json").write_text(listed)
        (directory / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n"
            "rule_files: [modelhost.rules.yml]\n"
            "scrape_configs:\n"
            "  - job_name: modelhost\n"
            "    file_sd_configs: [{files: [targets.json]}]\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        log = (self._directory / "prometheus.log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={self._directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
            )
        try:
            until(self._is_ready, "Prometheus is ready", START_LIMIT_S)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._reservation.close()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "prometheus.log").read_text()
        try:
            return bool(self._get("/-/ready"))
        except OSError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now."""
        answer = json.loads(self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """The alerts that fire."""
        return {one["metric"]["alertname"] for one in self.query('ALERTS{alertstate="firing"}')}

    def rule_problems(self) -> list[str]:
        """What went wrong in evaluating rules."""
        groups = json.loads(self._get("/api/v1/rules"))["data"]["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped."""
        found: list[dict[str, Any]] = json.loads(self._get("/api/v1/targets"))["data"]["activeTargets"]
        return found

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=CALL_LIMIT_S) as response:
            body: bytes = response.read()
            return body
