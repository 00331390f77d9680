"""BentoML: adaptive batching, a worker a core, each of one thread.

WORKERS=2 BATCH=16 bentoml serve with_bentoml:Rival --working-dir rivals --port PORT
"""

import os
from typing import Any

import bentoml
from classifier import Classifier


@bentoml.service(workers=int(os.environ.get("WORKERS", "1")), traffic={"timeout": 60})
class Rival:
    """The service that BentoML runs."""

    def __init__(self) -> None:
        self._classify = Classifier(num_threads=int(os.environ.get("THREADS", "0")) or None)

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BATCH"]), max_latency_ms=60000)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """Classify a batch of texts of many requests."""
        return self._classify(texts)
