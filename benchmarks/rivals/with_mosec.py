"""mosec: dynamic batching in its Rust server, a Python worker a core, each of one thread.

WORKERS=2 BATCH=16 python with_mosec.py --address 127.0.0.1 --port PORT --timeout 60000
"""

import os
from typing import Any

from classifier import load_classifier
from mosec import Server, Worker

WAIT_MILLISECONDS = 10  # its default


class Inference(Worker):
    """The worker that mosec runs."""

    def __init__(self) -> None:
        super().__init__()
        self._classify = load_classifier()

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Classify a batch."""
        return self._classify([each["text"] for each in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Inference,
        num=int(os.environ["WORKERS"]),
        max_batch_size=int(os.environ["BATCH"]),
        max_wait_time=WAIT_MILLISECONDS,
    )
    server.run()
