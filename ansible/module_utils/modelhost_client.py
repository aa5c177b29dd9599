"""Runs `modelhost` for the modules, within bounds, and reads what it says. Standard library only; no modelhost here."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from typing import Any, NamedTuple

COMMAND = "/opt/modelhost/current/bin/modelhost"
CONFIG = "/etc/modelhost/modelhost.toml"

OUTPUT_MAX_BYTES = 16 << 20
"""Of what a command may say: the status of 256 versions with 256 processes each takes less."""

TEXT_MAX_BYTES = 4 << 20
"""Of a deployment file, as `modelhost apply` takes it."""

_SHOWN_CHARS = 2000
"""Of output that is no document."""


class Failure(Exception):
    """The module fails with this text."""


class Ran(NamedTuple):
    """What became of a command."""

    code: int | None
    """Its exit code; None: it took too long, or said too much, and was killed."""
    out: str
    err: str
    why_killed: str


def common_arguments() -> dict[str, dict[str, Any]]:
    """What every module takes."""
    return {
        "command": {"type": "path", "default": COMMAND},
        "config": {"type": "path", "default": CONFIG},
    }


def run(argv: list[str], timeout_s: float, text: str = "", output_max_bytes: int = OUTPUT_MAX_BYTES) -> Ran:
    """Run a command with a text as its standard input. It is killed, by its pid, at the deadline.

    Settings come from the file that is named on its command line, not from this process' environment. Raises `Failure`
    if it cannot be run at all.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MODELHOST_")}
    deadline = time.monotonic() + timeout_s
    with tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                argv, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd="/"
            )
        except OSError as error:
            raise Failure(_why_not_run(argv[0], error)) from error
    with process:
        try:
            parts, why_killed = _read(process, deadline, output_max_bytes)
            code = None if why_killed else process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            code, why_killed = None, f"did not end within {timeout_s:g} s"
        finally:
            if process.poll() is None:
                process.kill()
    out, err = (bytes(part).decode("utf-8", "replace") for part in parts)
    return Ran(code, out, err, why_killed if code is None else "")


def _read(process: subprocess.Popen[bytes], deadline: float, output_max_bytes: int) -> tuple[list[bytearray], str]:
    """Read both outputs until they end; also why the command has to be killed, if it has."""
    assert process.stdout is not None and process.stderr is not None  # noqa: S101 - pipes were asked for
    parts = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    open_files = set(parts)
    begun = time.monotonic()
    while open_files:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return list(parts.values()), f"did not end within {deadline - begun:.1f} s"
        for file in select.select(sorted(open_files), [], [], left_s)[0]:
            data = os.read(file, 1 << 16)
            if not data:
                open_files.discard(file)
            parts[file] += data
            if len(parts[file]) > output_max_bytes:
                del parts[file][output_max_bytes:]
                return list(parts.values()), f"said more than {output_max_bytes} bytes"
    return list(parts.values()), ""


def _why_not_run(command: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{command}: expected modelhost's command, found none: is modelhost installed on this host?"
    return f"{command}: cannot be run: {error.strerror or error}"


def document_of(ran: Ran, what: str) -> dict[str, Any]:
    """The document that a command wrote. Raises `Failure` with what it wrote instead."""
    said = "\n".join(shown for shown in (_shown(ran.err), _shown(ran.out)) if shown) or "nothing"
    if ran.code is None:
        raise Failure(f"{what} {ran.why_killed} and was killed; it said: {said}")
    try:
        document = json.loads(ran.out)
    except ValueError:
        raise Failure(f"{what}: expected a JSON document, received (exit code {ran.code}): {said}") from None
    if not isinstance(document, dict):
        raise Failure(f"{what}: expected a JSON object, received (exit code {ran.code}): {said}")
    return document


def _shown(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ... ({len(text)} characters)"


def name_of(model: dict[str, Any]) -> str:
    """How a version is called in messages."""
    return f"{model.get('name')} version {model.get('version')}"


def read_release(command: str, timeout_s: float) -> str:
    """The release that is installed. Raises `Failure`."""
    ran = run([command, "--version"], timeout_s)
    words = ran.out.split()
    if ran.code != 0 or not words:
        why = ran.why_killed or f"ended with exit code {ran.code}: {_shown(ran.err) or 'nothing said'}"
        raise Failure(f"{command} --version {why}")
    return words[-1]


def read_status(command: str, config: str, timeout_s: float) -> dict[str, Any]:
    """What `modelhost status --json` says, of a host that does not run too. Raises `Failure`."""
    return document_of(run([command, "status", "--json", "--config", config], timeout_s), "modelhost status")


def numbers_of(traffic: dict[str, Any] | None) -> dict[str, Any]:
    """What became of a version's requests, by its `traffic`; None where nothing is known."""
    if traffic is None:
        return dict.fromkeys(("requests", "failed", "failed_percent", "p50_ms", "p90_ms", "p99_ms"))
    failed = traffic.get("failed", 0)
    return numbers(traffic.get("answered", 0), failed, counts_of(traffic))


def numbers(answered: int, failed: int, counts: Counts) -> dict[str, Any]:
    """The same of counts."""
    requests = answered + failed
    return {
        "requests": requests,
        "failed": failed,
        "failed_percent": 100 * failed / requests if requests else None,
        **{f"p{percent}_ms": quantile_ms(counts, percent / 100) for percent in (50, 90, 99)},
    }


# -- latency ------------------------------------------------------------------------------------------------------
# As host/protocol/latency.py, which a test compares this with: eight buckets of equal width for each power of two.
Counts = dict[int, int]
"""Bucket to answers."""


def counts_of(traffic: dict[str, Any] | None) -> Counts:
    """The histogram of a version's `traffic`."""
    latency = (traffic or {}).get("latency") or {}
    return {int(bucket): count for bucket, count in (latency.get("counts") or {}).items()}


def counts_since(before: Counts, now: Counts) -> Counts:
    """What came between two readings; all of it, if it began anew in between."""
    more = {bucket: count - before.get(bucket, 0) for bucket, count in now.items()}
    if min(more.values(), default=0) < 0 or not before.keys() <= now.keys():
        return now
    return {bucket: count for bucket, count in more.items() if count}


def merged(one: Counts, other: Counts) -> Counts:
    """Both together."""
    return {bucket: one.get(bucket, 0) + other.get(bucket, 0) for bucket in {*one, *other}}


def quantile_ms(counts: Counts, quantile: float) -> float | None:
    """The time that this share of the answers (0 to 1) took at most; None if there are none."""
    rank, below = quantile * sum(counts.values()), 0
    end = None
    for bucket in sorted(counts):
        shift, step = divmod(bucket, 8)
        begin, end = (step + 8) << shift, (step + 9) << shift
        if below + counts[bucket] >= rank:
            return round((begin + (end - begin) * max(0.0, rank - below) / counts[bucket]) / 1e6, 6)
        below += counts[bucket]
    return None if end is None else end / 1e6
