"""A replica under Ray Serve: a listener, and the beat that tells the front of it.

Serve starts it, watches its health, counts its load and ends it; requests reach its listener from
HAProxy without passing through Serve.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from serving.deployment.config import Endpoint
from serving.deployment.front import Beat
from serving.deployment.server import Listener
from serving.http.metrics import Sample
from serving.registry.canary_metrics import Tally

BEAT_SECONDS = 1.0
DRAIN_SECONDS = 0.3  # for HAProxy to have stopped sending

log = logging.getLogger(__name__)


class Replica:
    """The Serve deployment around `Listener`.

    host: where it listens; "" for the address of its node. front: the handle of `Front`.
    """

    def __init__(self, endpoint: dict[str, Any], host: str, front: DeploymentHandle) -> None:
        import torch  # seconds, which whoever deploys must not wait for

        torch.set_num_threads(1)
        self._front = front
        self._listener = Listener(
            Endpoint(**endpoint),
            host or ray.util.get_node_ip_address(),
            counts=self._all_counts,
            tallies=self._all_tallies,
        )
        self._listener.start()
        self._ended = threading.Event()
        self._known: threading.Event = threading.Event()
        self._load = (time.perf_counter(), 0.0, 0.0, 0.0)
        self._beating = threading.Thread(target=self._keep_beating, daemon=True, name="beat")
        self._beating.start()
        self._known.wait(30)

    async def predict(self, texts: list[str], model: str | None = None) -> list[dict[str, float]]:
        """For Python inside the cluster: the score of each label, for each text."""
        answer = await asyncio.to_thread(
            self._listener.call, lambda house: house.predict(model, texts)
        )
        return [dict(zip(answer.model.names, value.scores, strict=True)) for value in answer.values]

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises."""
        if not self._listener.alive():
            raise RuntimeError("the HTTP server has ended")
        if not self._listener.call(lambda house: house.ready()):
            raise RuntimeError("the model does not answer")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: since the last time, how busy the engine was and how long it kept
        requests waiting."""
        totals = self._listener.load()
        before, (now, busy, waited, answered) = self._load, totals
        self._load = totals
        seconds, number = max(1e-3, now - before[0]), answered - before[3]
        return {
            "busy": min(1.0, (busy - before[1]) / seconds),
            "waited_seconds": (waited - before[2]) / number if number else 0.0,
        }

    async def __del__(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        """Take no more requests, answer those that came, and be forgotten."""
        address = self._listener.address
        try:
            self._front.drain.remote(address).result(timeout_s=5)
        except Exception:  # without a front nobody sends anything either
            log.warning("the front was not told that %s ends", address, exc_info=True)
        time.sleep(DRAIN_SECONDS)
        self._listener.end()
        self._front.leave.remote(address)

    def _keep_beating(self) -> None:
        while not self._ended.is_set():
            beat = Beat(self._listener.address, self._listener.snapshot(), self._listener.tallies())
            try:
                self._front.beat.remote(beat).result(timeout_s=10)
                self._known.set()
            except Exception:  # the front is being replaced; HAProxy goes on meanwhile
                log.warning("the front does not hear %s", beat.address, exc_info=True)
            self._ended.wait(BEAT_SECONDS)

    async def _all_counts(self) -> Mapping[Sample, float]:
        counts: Mapping[Sample, float] = await self._ask_front("counts")
        return counts

    async def _all_tallies(self) -> Sequence[Tally]:
        tallies: Sequence[Tally] = await self._ask_front("tallies")
        return tallies

    async def _ask_front(self, method: str) -> Any:
        """What the front answers, asked in a thread: this loop is not Serve's."""
        return await asyncio.to_thread(
            lambda: getattr(self._front, method).remote().result(timeout_s=5)
        )
