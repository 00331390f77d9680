"""LitServe: batching on, a worker a core, each of one thread.

python with_litserve.py PORT WORKERS BATCH
"""

import sys
from typing import Any

import litserve
from classifier import load_classifier

WAIT_SECONDS = 0.01  # as in its batching guide


class Api(litserve.LitAPI):
    """The API that LitServe calls."""

    def setup(self, device: str) -> None:
        """Load the model, once in each worker."""
        self._classify = load_classifier()

    def decode_request(self, request: dict[str, Any]) -> str:
        """Return the text of a request."""
        return str(request["text"])

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self._classify(texts)

    def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the response to one request."""
        return answer


if __name__ == "__main__":
    port, workers, batch = map(int, sys.argv[1:])
    api = Api(max_batch_size=batch, batch_timeout=WAIT_SECONDS)
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=workers, fast_queue=True
    )
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")
