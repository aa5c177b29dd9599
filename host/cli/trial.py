"""A worker on trial: one package, one real worker process, one connection. What `modelhost try` measures."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from host.cli.preflight import child_environment
from host.golden import golden_difference
from host.protocol.documents import decode_document, encode_document
from host.protocol.errors import HostError
from host.protocol.frames import BODY_LIMIT_BYTES, Frame, FrameDecoder, Kind
from host.protocol.messages import (
    Encoding,
    Hello,
    Operation,
    RequestHead,
    ResponseHead,
    read_hello,
    read_responses,
    request_frames,
)
from host.protocol.package import GoldenCase, Package
from host.tail import last_lines

LOG_LINES: Final = 15
STOP_S: Final = 5.0
LATENCY_CALLS: Final = 50
BATCH_ROUNDS: Final = 5

_READ_BYTES: Final = 1 << 18
_LOOK_S: Final = 0.01
_NS_PER_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer: its head, its body and how long it took."""

    head: ResponseHead
    body: bytes
    duration_s: float

    def document(self) -> Any:
        """The body as plain values."""
        return decode_document(self.body, Encoding.JSON)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Times in seconds, memory in bytes."""

    first_s: float
    median_s: float
    batch_rows: int
    rows_per_s: float


class TrialWorker:
    """A worker process and a connection to it; both are gone, and so is its socket, when the block ends."""

    def __init__(self, package: Package, directory: Path, python: Path, code_root: Path, work: Path) -> None:
        self._package = package
        self._directory = directory
        self._python = python
        self._code_root = code_root
        self._socket_path = work / "worker.sock"
        self._log_path = work / "worker.log"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._decoder = FrameDecoder(BODY_LIMIT_BYTES)
        self._frames: list[Frame] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._sequence = 0
        self.startup_s = 0.0

    def __enter__(self) -> TrialWorker:
        """Start it. Raises `HostError` with the end of its log if it does not become ready."""
        command = [str(self._python), *("-I", "-u", "-X", "faulthandler")]
        command += [str(self._code_root / "models" / "by_path.py"), "--package", str(self._directory)]
        begun = time.monotonic()
        try:
            with self._log_path.open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, "--socket", str(self._socket_path)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=child_environment(os.environ),
                    start_new_session=True,
                )
        except OSError as error:
            raise HostError(f"{self._python} cannot be run: {error.strerror}") from error
        try:
            self._connect(begun + self._package.limits.startup_s)
        except BaseException:
            self._end()
            raise
        self.startup_s = time.monotonic() - begun
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop it, with a limit."""
        self._end()

    def hello(self) -> Hello:
        """Read what the worker says first."""
        return read_hello(self._receive(Kind.HELLO, time.monotonic() + self._package.limits.startup_s).head)

    def infer(self, body: bytes) -> Answered:
        """Send one request and wait for its answer, for as long as the package says a request may take."""
        return self.infer_all([body])[0]

    def infer_all(self, bodies: Sequence[bytes]) -> list[Answered]:
        """Send requests all at once and wait for the answers, in the order of the requests."""
        begun = time.monotonic()
        limit_s = self._package.limits.timeout_ms / 1000 + self._package.limits.hang_s
        requests = []
        first = self._sequence + 1
        for body in bodies:
            self._sequence += 1
            now_ns = time.monotonic_ns()
            head = RequestHead(
                sequence=self._sequence,
                operation=Operation.INFER,
                received_ns=now_ns,
                deadline_ns=now_ns + self._package.limits.timeout_ms * _NS_PER_MS,
                body=body,
            )
            requests.append(head)
        try:
            self._sock.settimeout(limit_s)
            self._sock.sendall(request_frames(requests))
        except OSError as error:
            raise HostError(f"the worker takes no request: {error}{self._log_end()}") from error
        answers: dict[int, Answered] = {}
        while len(answers) < len(bodies):
            frame = self._receive(Kind.RESPONSE, begun + limit_s)
            for answer in read_responses(frame):
                body = answer.body or frame.body
                answers[answer.sequence] = Answered(answer, body, time.monotonic() - begun)
        return [answers[first + position] for position in range(len(bodies))]

    def memory_bytes(self) -> tuple[int, int]:
        """Resident memory now and at its peak, from /proc."""
        pid = self._process.pid if self._process is not None else 0
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError as error:
            raise HostError(f"the worker has ended{self._log_end()}") from error
        fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        resident, peak = (int(fields[name][0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return resident, peak

    def _connect(self, deadline: float) -> None:
        while True:
            try:
                self._sock.connect(str(self._socket_path))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            code = self._process.poll() if self._process is not None else None
            # The worker's own alarm may ring first.
            if code is not None and code != -signal.SIGALRM:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise HostError(f"the worker {how} before it was ready{self._log_end()}")
            if code is not None or time.monotonic() > deadline:
                limit_s = self._package.limits.startup_s
                raise HostError(f"the worker is not ready after {limit_s} s (limits.startup_s){self._log_end()}")
            time.sleep(_LOOK_S)

    def _receive(self, kind: Kind, deadline: float) -> Frame:
        while not self._frames:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(_READ_BYTES)
            except TimeoutError:
                raise HostError(f"the worker has not answered in time{self._log_end()}") from None
            except OSError as error:
                raise HostError(f"the worker broke the connection: {error}{self._log_end()}") from error
            if not data:
                raise HostError(f"the worker closed the connection{self._log_end()}")
            self._frames += self._decoder.feed(data)
        frame = self._frames.pop(0)
        if frame.kind != kind:
            raise HostError(f"the worker sent a frame of kind {frame.kind}, expected {kind.name}")
        return frame

    def _log_end(self) -> str:
        lines = last_lines(self._log_path, LOG_LINES)
        return "; the end of its log:" + "".join(f"\n  {line}" for line in lines) if lines else "; its log is empty"

    def _end(self) -> None:
        self._sock.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure(worker: TrialWorker, request: dict[str, Any], max_batch_rows: int, *, batchable: bool) -> Measured:
    """Time one request again and again, then many at once. Raises `HostError` if one is not answered well."""
    body = encode_document(request, Encoding.JSON)
    single = [good(worker.infer(body)) for _ in range(LATENCY_CALLS)]
    rows = max(1, single[0].head.rows)
    copies = max(1, max_batch_rows // rows) if batchable else 1
    best_s = min(
        max(good(answer).duration_s for answer in worker.infer_all([body] * copies)) for _ in range(BATCH_ROUNDS)
    )
    return Measured(
        first_s=single[0].duration_s,
        median_s=statistics.median(answer.duration_s for answer in single[1:]),
        batch_rows=copies * rows,
        rows_per_s=copies * rows / best_s,
    )


def good(answer: Answered) -> Answered:
    """The answer itself. Raises `HostError` if it is an error."""
    if answer.head.status != 200:
        document = answer.document()
        raise HostError(f"the worker answered {answer.head.status} {document.get('code')}: {document.get('error')}")
    return answer


def golden_problem(case: GoldenCase, answer: Answered) -> str | None:
    """How an answer differs from the recorded one, or None."""
    try:
        return golden_difference(case, good(answer).document())
    except HostError as error:
        return str(error)
