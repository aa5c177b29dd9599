"""LitServe: one inference worker, batches of up to 64 within 1 ms, fast queue."""

import sys
from typing import Any

import litserve
from lightgbm_model import LightGBMModel


class Api(litserve.LitAPI):
    """The model."""

    def setup(self, device: str) -> None:
        """Load."""
        self._model = LightGBMModel()

    def decode_request(self, request: dict) -> Any:
        """LitServe has parsed the JSON."""
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Keep the requests as they are."""
        return list(inputs)

    def predict(self, batch: list[Any]) -> list[Any]:
        """Answer a batch."""
        return self._model.answer_all(batch)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One answer each."""
        return output

    def encode_response(self, output: Any) -> Any:
        """LitServe writes the JSON."""
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.001, api_path="/v2/models/breast_cancer/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False, access_log=False)
