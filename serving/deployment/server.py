"""The HTTP server of one replica: a thread with its own event loop. Imports no Ray.

server = ReplicaServer(endpoint, "127.0.0.1")
server.start()              # returns when the default model has answered
server.address              # "127.0.0.1:40123"
server.stop()               # answers requests under way first
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
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving import protocols
from serving.deployment import admin_routes
from serving.deployment.config import EndpointConfig
from serving.engine.devices import find_engine_device
from serving.http.asgi import App
from serving.http.grpc_server import GRPCServer, check_grpc_packages
from serving.http.keys import ApiKeys, load_keys
from serving.http.log_lines import configure_logs
from serving.http.messages import JSON, HTTPError, WireProtocol, bertha_version
from serving.http.metrics import Metrics, Sample
from serving.http.origins import Origins
from serving.http.tracing import RequestTracer
from serving.inference.feedback import FeedbackStore
from serving.inference.model_server import ModelServer
from serving.protocols.json_bodies import error_json
from serving.registry.canary_metrics import CanaryMetrics
from serving.registry.registry import Registry

T = TypeVar("T")
MAX_HEAD_BYTES = 65536  # of a request, as HAProxy has it
GRACE_SECONDS = 25  # for requests under way, when a replica ends
KEEP_ALIVE_SECONDS = 150  # longer than HAProxy's, so that HAProxy closes idle connections


class ReplicaServer:
    """Serves the models of an endpoint on one address.

    samples, canary_metrics: of all replicas; by default of this one.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        host: str,
        port: int = 0,
        samples: Callable[[], Awaitable[Mapping[Sample, float]]] | None = None,
        canary_metrics: Callable[[], Awaitable[Sequence[CanaryMetrics]]] | None = None,
    ) -> None:
        self._metrics = Metrics()
        self._endpoint = endpoint
        # Until their number is known, as many replicas as there may be share the rate of a key.
        keys = load_keys(endpoint.keys) if endpoint.keys else None
        self._keys = ApiKeys(keys, endpoint.max_replicas)
        self._socket = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
        self._all_samples = samples or self._own_samples
        self._all_canary_metrics = canary_metrics or self._own_canary_metrics
        self._grpc: GRPCServer | None = None
        self.grpc_address = ""  # as others reach it, if there is gRPC
        self._accepting = True
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=lambda: uvloop.run(self._run_server()), name="http", daemon=True
        )

    @property
    def address(self) -> str:
        """host:port, as others reach it."""
        host, port = self._socket.getsockname()[:2]
        return f"{host}:{port}"

    def start(self) -> None:
        """Load the default model and listen. Raises what the loading raises."""
        self._thread.start()
        self._started.result()

    def run_in_loop(self, work: Callable[[ModelServer], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine of the model server in its event loop and return the result."""
        return asyncio.run_coroutine_threadsafe(work(self._models), self._loop).result()

    def stop(self) -> None:
        """Answer what is under way and stop."""
        self._accepting = False
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._begin_end)
            self._thread.join(30)

    def is_alive(self) -> bool:
        """Return whether the server runs."""
        return self._thread.is_alive()

    def metric_samples(self) -> dict[Sample, float]:
        """Return the metrics of this replica."""
        models = self._models
        return self._metrics.snapshot() | dict(
            (*models.executor.metric_samples(), *models.drift.metric_samples())
        )

    def canary_metrics(self) -> dict[str, CanaryMetrics]:
        """Return the metrics of canaries by name."""
        return dict(self._models.canary_router.metrics)

    def share_rates(self, num_replicas: int) -> None:
        """Allow each key its share of its rate, now that so many replicas answer."""
        self._keys.num_replicas = num_replicas

    def load_totals(self) -> tuple[float, float, float, float]:
        """Return the time, and totals: busy seconds, queueing seconds, requests."""
        executor = self._models.executor
        waited, answered = executor.queue_totals()
        return time.perf_counter(), executor.batcher.total.busy_seconds, waited, answered

    async def _run_server(self) -> None:
        endpoint = self._endpoint
        self._loop = asyncio.get_running_loop()
        try:
            if endpoint.logs_requests:
                configure_logs(endpoint.log_format, endpoint.log_file)
            self._models = ModelServer(
                Registry.open(endpoint.registry),
                endpoint.cache,
                endpoint.limits,
                endpoint.memory_bytes,
                find_engine_device() if endpoint.device == "auto" else endpoint.device,
                endpoint.response_bytes,
                FeedbackStore(endpoint.feedback) if endpoint.feedback else None,
            )
            await self._models.start()
            self._tracer = RequestTracer.export_to(endpoint.traces) if endpoint.traces else None
            self._server = uvicorn.Server(_uvicorn_config(self._build_http_app()))
            if endpoint.grpc:
                await self._start_grpc()
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await self._server.serve(sockets=[self._socket])
        if self._grpc is not None:
            await self._grpc.ended
        await self._models.close()

    def _begin_end(self) -> None:
        """Stop taking requests; to be called in the event loop."""
        self._server.should_exit = True
        if self._grpc is not None:
            self._grpc.begin_end(GRACE_SECONDS)

    async def _start_grpc(self) -> None:
        """Listen for gRPC beside HTTP, with the same models, keys and limits."""
        check_grpc_packages()
        from serving.protocols.oip_grpc import service  # protobuf, which HTTP does without

        self._grpc = GRPCServer(
            self._build_app([service.PROTOCOL]),
            service.PROTOCOL.routes,
            service.STREAMS,
            self._endpoint.limits.max_body_bytes,
        )
        self.grpc_address = await self._grpc.start(self._socket.getsockname()[0])

    def _build_http_app(self) -> App:
        admin = admin_routes.admin_protocol(
            protocols.ALL,
            self._all_samples,
            self._all_canary_metrics,
            lambda: self._accepting,
            bertha_version(),
        )
        return self._build_app([*protocols.ALL, admin])

    def _build_app(self, answered: Sequence[WireProtocol]) -> App:
        return App(
            answered,
            self._models,
            keys=self._keys,
            hosts=self._endpoint.host_names,
            origins=Origins(self._endpoint.allowed_origins),
            root_path=self._endpoint.root_path,
            metrics=self._metrics,
            log_requests=self._endpoint.logs_requests,
            tracer=self._tracer,
        )

    async def _own_samples(self) -> Mapping[Sample, float]:
        return self.metric_samples()

    async def _own_canary_metrics(self) -> Sequence[CanaryMetrics]:
        return list(self._models.canary_router.metrics.values())


def _uvicorn_config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=SingleWriteProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


class CoalescingTransport:
    """A transport that joins the writes of one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._buffer: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write `data` at the end of this turn."""
        if not self._buffer:
            self._loop.call_soon(self._flush)
        self._buffer.append(data)

    def close(self) -> None:
        """Write what is buffered, and close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, []
        if buffer:
            self._transport.write(b"".join(buffer))


class SingleWriteProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, with head and body of a response in one write.

    A request whose head does not end is refused; httptools itself would keep all of it.
    """

    _is_in_head = False
    _head_bytes = 0

    # uvicorn writes the head of a response before its body. A replica that is killed between the
    # two has begun a response that no other replica can continue, so HAProxy does not retry and
    # the request is lost. Killed before a single write, it has sent nothing, and HAProxy sends the
    # request to another replica (`retry-on empty-response`).
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wrap the transport."""
        super().connection_made(CoalescingTransport(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        """Parse `data`, and count it if it neither begins nor ends the head of a request."""
        was_in_head = self._is_in_head
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if was_in_head and self._is_in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The head of the request is too large.")

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, in JSON like every other error."""
        body = error_json(HTTPError("malformed", msg), 400)
        head = f"content-type: {JSON}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + head.encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        """Begin the head of a request."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End it."""
        self._is_in_head = False
        super().on_headers_complete()
