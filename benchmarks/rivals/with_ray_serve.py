"""Ray Serve with `@serve.batch`, as in its guide to dynamic request batching.

    python with_ray_serve.py PORT NUM_REPLICAS BATCH

One replica by default; tuned: one a core, each of one thread, as Ray gives an actor of one CPU.
`max_ongoing_requests` is raised above the batch, as in the guide: with its default of 5, batches
never fill. Ray's HAProxy mode is this file under RAY_SERVE_ENABLE_HA_PROXY=1.
"""

import signal
import sys
import threading
from typing import Any

import ray
from classifier import Classifier
from ray import serve
from starlette.requests import Request

WAIT_SECONDS = 0.01  # the default


def build_application(num_replicas: int, batch: int) -> Any:
    """Build the application."""

    @serve.deployment(
        num_replicas=num_replicas,
        max_ongoing_requests=4 * batch,
        ray_actor_options={"num_cpus": 1},
    )
    class Model:
        def __init__(self) -> None:
            self._classify = Classifier()

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=WAIT_SECONDS)
        async def classify(self, texts: list[str]) -> list[dict[str, Any]]:
            return self._classify(texts)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return await self.classify((await request.json())["text"])

    return Model.bind()


def main() -> None:
    """Serve until SIGTERM."""
    port, num_replicas, batch = map(int, sys.argv[1:])
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_application(num_replicas, batch), name="rival", route_prefix="/")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
