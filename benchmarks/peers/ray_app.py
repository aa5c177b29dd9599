"""Ray Serve: one replica, `@serve.batch` of up to 64 within 1 ms, uvloop and httptools in its proxy (its default)."""

from __future__ import annotations

import signal
import sys
from typing import Any

from lightgbm_model import LightGBMModel
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=512)
class Model:
    """The replica."""

    def __init__(self) -> None:
        self._model = LightGBMModel()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def infer(self, documents: list[Any]) -> list[Any]:
        """Answer a batch."""
        return self._model.answer_all(documents)

    async def __call__(self, request: Request) -> Any:
        """Read a request and wait for its batch."""
        return await self.infer(await request.json())


if __name__ == "__main__":
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False}
    )
    serve.run(Model.bind(), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
