"""One replica's HTTP server: a thread with its own event loop, models and surface. Knows no Ray.

listener = Listener(endpoint, "127.0.0.1")
listener.start()              # returns when the default model has answered
listener.address              # "127.0.0.1:40123"
listener.end()                # what is under way is answered first
"""

import asyncio
import concurrent.futures
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import uvicorn
import uvloop

from serving import protocols
from serving.deployment import admin_routes
from serving.deployment.config import Endpoint
from serving.http.asgi import Surface, show_requests
from serving.http.atomic_response import WholeAnswers
from serving.http.keys import Keys, load
from serving.http.metrics import Meters, Sample
from serving.http.tracing import Traces
from serving.http.version import version
from serving.inference.model_server import House
from serving.registry.canary_metrics import Tally
from serving.registry.registry import Registry

T = TypeVar("T")
KEEP_ALIVE_SECONDS = 150  # longer than HAProxy keeps a connection, so that it is the one to close


class Listener:
    """A server of the models of an endpoint on one address.

    counts, tallies: what all replicas counted; by default, this one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        host: str,
        port: int = 0,
        counts: Callable[[], Awaitable[Mapping[Sample, float]]] | None = None,
        tallies: Callable[[], Awaitable[Sequence[Tally]]] | None = None,
    ) -> None:
        self._meters = Meters()
        self._endpoint = endpoint
        self._socket = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
        self._counts = counts or self._own_counts
        self._tallies = tallies or self._own_tallies
        self._accepting = True
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def address(self) -> str:
        """host:port, as others reach it."""
        host, port = self._socket.getsockname()[:2]
        return f"{host}:{port}"

    def start(self) -> None:
        """Load what is live, and listen. Raises what the loading raises."""
        self._thread.start()
        self._started.result()

    def call(self, work: Callable[[House], Coroutine[Any, Any, T]]) -> T:
        """What `work` gives, in the event loop of the models."""
        return asyncio.run_coroutine_threadsafe(work(self._house), self._loop).result()

    def refuse(self) -> None:
        """Tell HAProxy that this replica wants no more requests; those that come are answered."""
        self._accepting = False

    def end(self) -> None:
        """Answer what is under way and stop."""
        self.refuse()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(setattr, self._server, "should_exit", True)
            self._thread.join(30)

    def alive(self) -> bool:
        """Whether the server runs."""
        return self._thread.is_alive()

    def snapshot(self) -> dict[Sample, float]:
        """What this replica has counted and holds."""
        return self._meters.snapshot() | dict(self._house.answering.samples())

    def tallies(self) -> dict[str, dict[str, Any]]:
        """Of the canaries, by name."""
        return {name: tally.to_json() for name, tally in list(self._house.trials.tallies.items())}

    def load(self) -> tuple[float, float, float, float]:
        """Now, and since the start: seconds computed, seconds that requests waited, requests."""
        answering = self._house.answering
        waited, answered = answering.waits()
        return time.perf_counter(), answering.batcher.total.busy_seconds, waited, answered

    def _run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        endpoint = self._endpoint
        if endpoint.log_requests:
            show_requests()
        self._loop = asyncio.get_running_loop()
        try:
            self._house = House(
                Registry.open(endpoint.registry),
                endpoint.cache,
                endpoint.limits,
                endpoint.memory_bytes,
            )
            await self._house.open()
            self._server = uvicorn.Server(self._configuration(self._surface()))
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await self._server.serve(sockets=[self._socket])
        await self._house.close()

    def _surface(self) -> Surface:
        keys = self._endpoint.keys
        operators = admin_routes.protocol(
            protocols.ALL, self._counts, self._tallies, lambda: self._accepting, version()
        )
        return Surface(
            [*protocols.ALL, operators],
            self._house,
            keys=Keys(load(keys), self._endpoint.max_replicas) if keys else Keys.open(),
            meters=self._meters,
            log_requests=self._endpoint.log_requests,
            traces=Traces.to(self._endpoint.traces) if self._endpoint.traces else None,
        )

    async def _own_counts(self) -> Mapping[Sample, float]:
        return self.snapshot()

    async def _own_tallies(self) -> Sequence[Tally]:
        return list(self._house.trials.tallies.values())

    def _configuration(self, surface: Surface) -> uvicorn.Config:
        return uvicorn.Config(
            surface,
            http=WholeAnswers,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=25,
        )
