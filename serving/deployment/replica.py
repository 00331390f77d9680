"""A replica under Ray Serve: an HTTP server, and its heartbeat to the front.

Serve starts it, checks its health, scales it and ends it; requests reach its server from HAProxy
without passing through Serve.
"""

import asyncio
import logging
import threading
import time
from typing import Any

import ray
import torch
from ray.serve.handle import DeploymentHandle

from serving.deployment.call_port import close_call_port
from serving.deployment.config import EndpointConfig
from serving.deployment.front import Heartbeat
from serving.deployment.server import ReplicaServer
from serving.engine.devices import limit_device_memory

HEARTBEAT_SECONDS = 1.0
DRAIN_SECONDS = 0.3  # until HAProxy has stopped sending

log = logging.getLogger(__name__)


class Replica:
    """The Serve deployment around `ReplicaServer`.

    host: where it listens; "" for the address of its node. front: the handle of `Front`.
    """

    def __init__(self, endpoint: dict[str, Any], host: str, front: DeploymentHandle) -> None:
        torch.set_num_threads(1)
        close_call_port()
        self._front = front
        config = EndpointConfig(**endpoint)
        share = config.gpus_per_replica
        if share is not None and share < 1:  # Ray reserves a share, and nobody holds to it
            limit_device_memory(config.device, share)
        self._server = ReplicaServer(
            config,
            host or ray.util.get_node_ip_address(),
            samples=lambda: self._ask_front("merge_samples"),
            canary_metrics=lambda: self._ask_front("merge_canary_metrics"),
        )
        self._server.start()
        self._ended = threading.Event()
        self._registered = threading.Event()  # the front has heard of this replica
        self._load = (time.perf_counter(), 0.0, 0.0, 0.0)
        threading.Thread(target=self._send_heartbeats, daemon=True, name="heartbeat").start()
        self._registered.wait(30)

    async def predict(self, texts: list[str], model: str | None = None) -> list[dict[str, float]]:
        """Return the score of each label for each text, to Python code in the cluster."""
        result = await asyncio.to_thread(
            self._server.run_in_loop, lambda models: models.predict(model, texts)
        )
        names = result.model.output_names
        return [dict(zip(names, value.scores, strict=True)) for value in result.values]

    def check_health(self) -> None:
        """Raise if the server or its model fails; Serve then replaces the replica."""
        if not self._server.is_alive():
            raise RuntimeError("the HTTP server has ended")
        if not self._server.run_in_loop(lambda models: models.is_ready()):
            raise RuntimeError("the model does not answer")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Report to Serve how busy the engine was, and the mean queueing time."""
        before, self._load = self._load, self._server.load_totals()
        now, busy, waited, answered = self._load
        seconds, number = max(1e-3, now - before[0]), answered - before[3]
        return {
            "busy": min(1.0, (busy - before[1]) / seconds),
            "waited_seconds": (waited - before[2]) / number if number else 0.0,
        }

    async def __del__(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            await asyncio.to_thread(self._drain_and_stop)

    def _drain_and_stop(self) -> None:
        """Leave HAProxy, answer what has arrived, and stop."""
        address = self._server.address
        # The order matters: HAProxy first stops sending, then requests under way are answered, and
        # only then is the slot freed. Closing the socket first would lose what HAProxy just sent.
        try:
            self._front.drain_replica.remote(address).result(timeout_s=5)
        except Exception:  # without a front nobody sends anything either
            log.warning("the front was not told that %s ends", address, exc_info=True)
        time.sleep(DRAIN_SECONDS)
        self._server.stop()
        self._front.remove_replica.remote(address)

    def _send_heartbeats(self) -> None:
        while not self._ended.is_set():
            server = self._server
            beat = Heartbeat(
                server.address,
                server.metric_samples(),
                server.canary_metrics(),
                server.grpc_address,
            )
            try:
                num_replicas = self._front.heartbeat.remote(beat).result(timeout_s=10)
                server.share_rates(num_replicas)
                self._registered.set()
            except Exception:  # the front is being replaced; HAProxy keeps running meanwhile
                log.warning("the front does not hear %s", beat.address, exc_info=True)
            self._ended.wait(HEARTBEAT_SECONDS)

    async def _ask_front(self, method: str) -> Any:
        """Call the front in a thread, because this event loop is not Serve's."""
        return await asyncio.to_thread(
            lambda: getattr(self._front, method).remote().result(timeout_s=5)
        )
