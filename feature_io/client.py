"""Asks running feature processes something, over their sockets: for operators' commands and for measuring.

Blocking and one question at a time. The sockets are the host's user's alone.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from host.config.run_dir import FEATURES_GROUP, RunDirectory
from host.protocol.documents import decode_document
from host.protocol.errors import FrameError, HostError
from host.protocol.frames import ANSWER_MAX_BYTES, FrameDecoder, Kind
from host.protocol.messages import Encoding, Operation, RequestHead, ResponseHead, read_responses, request_frames

TIMEOUT_S: Final = 10.0
_READ_BYTES: Final = 1 << 18
_OK: Final = 200


class FeatureClient:
    """One connection to one feature process."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        """Connect. Raises `HostError` if nobody is there."""
        self._path = path
        self._timeout_s = timeout_s
        self._decoder = FrameDecoder(ANSWER_MAX_BYTES)
        self._sequences = itertools.count(1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise HostError(f"{path}: no feature process answers: {error.strerror or error}") from error

    def ask(self, operation: Operation, document: bytes) -> Any:
        """Ask, and return the answer's document. Raises `HostError`, with the service's own words if it refuses."""
        sequence = next(self._sequences)
        now_ns = time.monotonic_ns()
        head = RequestHead(
            sequence=sequence,
            operation=operation,
            received_ns=now_ns,
            deadline_ns=now_ns + int(self._timeout_s * 1e9),
            body=document,
        )
        try:
            self._socket.sendall(request_frames([head]))
            answer, body = self._answer(sequence)
        except (OSError, FrameError) as error:
            raise HostError(f"{self._path}: the feature process does not answer: {error}") from error
        found = decode_document(body, Encoding.JSON)
        if answer.status != _OK:
            raise HostError(f"{found['code']}: {found['error']}")
        return found

    def _answer(self, sequence: int) -> tuple[ResponseHead, bytes]:
        while True:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection")
            for frame in self._decoder.feed(data):
                if frame.kind == Kind.RESPONSE:
                    for head in read_responses(frame):
                        if head.sequence == sequence:
                            return head, head.body or frame.body

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def feature_sockets(run_dir: Path) -> Iterator[Path]:
    """The sockets of a host's feature processes."""
    return iter(sorted(RunDirectory(run_dir).group_sockets(FEATURES_GROUP).glob("[0-9]*.sock")))


def ask_all(run_dir: Path, operation: Operation, document: bytes) -> list[Any]:
    """Ask every feature process of a host. Raises `HostError` if there is none, or one does not answer."""
    answers = []
    for path in feature_sockets(run_dir):
        with FeatureClient(path) as client:
            answers.append(client.ask(operation, document))
    if not answers:
        raise HostError(f"no feature process runs in {run_dir}: is the host up, and does it have views?")
    return answers
