"""mosec: Rust front, one Python worker process, msgspec for JSON.

Best settings, found by trying: no batching at one connection; batches of what arrived within MAX_WAIT_MS otherwise.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec
from lightgbm_model import LightGBMModel
from mosec import Server, Worker

BATCH = int(os.environ.get("MAX_BATCH", "1"))
WAIT_MS = int(os.environ.get("MAX_WAIT_MS", "0"))
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Model(Worker):
    """One worker."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LightGBMModel()

    def deserialize(self, data: bytes) -> Any:
        """Read a request."""
        return _decode(data)

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return _encode(data)

    def forward(self, data: Any) -> Any:
        """Answer one request, or a batch of them."""
        return self.model.answer_all(data) if BATCH > 1 else self.model.answer_all([data])[0]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=BATCH, max_wait_time=WAIT_MS)
    sys.argv += ["--log-level", "error"] if "--log-level" not in sys.argv else []
    server.run()
