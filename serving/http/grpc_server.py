"""A gRPC server that hands each call to the ASGI application, as a request with one body.

So keys, limits, deadlines, metrics, logs and traces are those of HTTP, in one place. Knows no
message. Needs grpcio, of the extra `grpc`.

server = GRPCServer(App([PROTOCOL], models), PROTOCOL.routes, streams=STREAMS)
address = await server.start("127.0.0.1")
"""

import asyncio
import contextlib
import importlib.util
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.errors import BerthaError
from serving.http.asgi import App
from serving.http.messages import TIMEOUT_HEADER, Route

if TYPE_CHECKING:
    import grpc

HOST_KEY = "x-bertha-host"  # in which HAProxy tells by what name the server was called
MAX_ENVELOPE_BYTES = 65536  # of a message, around what the limit of a body is about
MAX_CALLS = 4096  # under way at once, of which few are computed and the others wait
MAX_ASKED_OF_STREAM = 8  # requests that are answered at once, so that they share batches
# What is read of the client's metadata; the rest would be headers about a body of HTTP.
METADATA_KEYS = {
    "authorization",
    "x-api-key",
    "api-key",
    "x-request-id",
    "traceparent",
    "tracestate",
    TIMEOUT_HEADER,
}

Metadata = tuple[tuple[str, str], ...]


class GRPCUnavailable(BerthaError):
    """The packages that gRPC needs are not installed."""


class CallAnswer(NamedTuple):
    """What the application answers: a message, or an error as JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes


_ENDING = CallAnswer(
    503, {}, b'{"code": "UNAVAILABLE", "message": "this replica is ending; open the stream again"}'
)

_NO_MESSAGE = CallAnswer(
    400, {}, b'{"code": "INVALID_ARGUMENT", "message": "the call ends before its message"}'
)


def check_grpc_packages() -> None:
    """Raise GRPCUnavailable unless grpcio and protobuf are installed."""
    for name in ("grpc", "google.protobuf"):
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:  # of the package that it lies in
            found = False
        if not found:
            raise GRPCUnavailable(
                f'--grpc: there is no module {name}; pip install "bertha-ray[grpc]"'
            )


class GRPCServer:
    """Answers the calls of `routes`, those in `streams` message by message.

    Belongs to the event loop that creates it. max_body_bytes: of a message.
    """

    def __init__(
        self, app: App, routes: Iterable[Route], streams: Sequence[Route], max_body_bytes: int
    ) -> None:
        import grpc.aio

        self._app = app
        self._calls: set[asyncio.Task[None]] = set()  # in the application
        self._readers: set[asyncio.Task[None]] = set()  # of open streams
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        options = {
            "grpc.max_receive_message_length": max_body_bytes + MAX_ENVELOPE_BYTES,
            "grpc.so_reuseport": 0,  # or another program of this user could take some calls
        }
        self._server = grpc.aio.server(
            options=[*options.items()], maximum_concurrent_rpcs=MAX_CALLS
        )
        # Messages are parsed by their route: grpcio calls one that it cannot parse UNKNOWN. And it
        # leaves a call without answer that ends before its message, unless it is read as a stream.
        handlers = {
            route.path: grpc.stream_stream_rpc_method_handler(self._stream(route.path))
            if route in streams
            else grpc.stream_unary_rpc_method_handler(self._unary(route.path))
            for route in routes
        }
        self._server.add_generic_rpc_handlers([_Handlers(handlers)])

    async def start(self, host: str) -> str:
        """Listen at a free port of `host`, and return the address."""
        host = f"[{host}]" if ":" in host else host
        port = self._server.add_insecure_port(f"{host}:0")
        await self._server.start()
        return f"{host}:{port}"

    def begin_end(self, seconds: float) -> None:
        """Take no more calls, and answer those under way within `seconds`; then `ended` is done."""
        stopping = asyncio.ensure_future(self._server.stop(seconds))
        stopping.add_done_callback(lambda _: self.ended.set_result(None))
        for reader in self._readers:
            reader.cancel()

    def _unary(self, path: str) -> Any:
        async def answer_call(
            messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext"
        ) -> bytes:
            message = await anext(aiter(messages), None)
            if message is None:
                await _abort_on_error(_NO_MESSAGE, context)
            assert message is not None
            answer = await self._ask(path, message, context)
            context.set_trailing_metadata(_trailing_metadata(answer))
            await _abort_on_error(answer, context)
            return answer.body

        return answer_call

    def _stream(self, path: str) -> Any:
        async def answer_stream(
            messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext"
        ) -> AsyncIterator[bytes]:
            asked: asyncio.Queue[asyncio.Future[CallAnswer] | None] = asyncio.Queue()
            room = asyncio.Semaphore(MAX_ASKED_OF_STREAM)

            async def read_messages() -> None:
                try:
                    async for message in messages:
                        await room.acquire()
                        asked.put_nowait(asyncio.ensure_future(self._ask(path, message, context)))
                finally:
                    asked.put_nowait(None)

            reader = asyncio.ensure_future(read_messages())
            self._readers.add(reader)
            waiting: asyncio.Future[CallAnswer] | None = None
            try:
                while (waiting := await asked.get()) is not None:
                    answer = await waiting
                    room.release()
                    await _abort_on_error(answer, context)
                    yield answer.body
                await asyncio.wait([reader])
                if reader.cancelled():  # by us: an open stream would hold up the end
                    await _abort_on_error(_ENDING, context)
            finally:
                self._readers.discard(reader)
                reader.cancel()
                while waiting is not None:
                    waiting.cancel()
                    waiting = None if asked.empty() else asked.get_nowait()

        return answer_stream

    async def _ask(
        self, path: str, message: bytes, context: "grpc.aio.ServicerContext"
    ) -> CallAnswer:
        """Return what the application answers; it hears when the client has gone."""
        headers = _request_headers(context)
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
        exchange = _Exchange(message)
        call = self._app(scope | {"headers": headers}, exchange.receive, exchange.send)
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            exchange.gone.set()
            raise
        return exchange.answer()


class _Exchange:
    """The two ends of a call in the application: a body that is there, and a client that waits."""

    def __init__(self, message: bytes) -> None:
        self._message: bytes | None = message
        self._status, self._headers, self._body = 0, dict[str, str](), b""
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        """Return the body, and then that the client has gone, once it has."""
        if self._message is not None:
            body, self._message = self._message, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """Keep a part of the response."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = message["headers"]
            self._headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in headers}
        else:
            self._body += message["body"]

    def answer(self) -> CallAnswer:
        """Return the whole response."""
        return CallAnswer(self._status, self._headers, self._body)


class _Handlers:
    """The handlers by path, as grpcio asks for them."""

    def __init__(self, by_path: Mapping[str, Any]) -> None:
        self._by_path = by_path

    def service(self, call: Any) -> Any:
        """Return the handler of a call; None: UNIMPLEMENTED."""
        return self._by_path.get(call.method)


def _request_headers(context: "grpc.aio.ServicerContext") -> list[tuple[bytes, bytes]]:
    """Return the headers of a call: what is read of its metadata, its name and its deadline."""
    metadata = [(key, value) for key, value in context.invocation_metadata() or ()]
    headers = {
        key.encode(): value.encode("latin-1", "replace")
        for key, value in metadata
        if key in METADATA_KEYS and isinstance(value, str)
    }
    seconds = context.time_remaining()
    if seconds is not None:
        headers[TIMEOUT_HEADER.encode()] = f"{max(seconds, 1e-6):f}".encode()
    hosts = [(b"host", value.encode()) for key, value in metadata if key == HOST_KEY]
    return [*headers.items(), *hosts]


def _trailing_metadata(answer: CallAnswer) -> Metadata:
    """Return what the answer's headers say, and how long a refused client should wait."""
    found = [(key, value) for key, value in answer.headers.items() if key.startswith("x-")]
    if (wait := answer.headers.get("retry-after")) is not None:
        found += [("retry-after", wait)]
        with contextlib.suppress(ValueError):
            found += [("grpc-retry-pushback-ms", str(int(1000 * float(wait))))]
    return tuple(found)


async def _abort_on_error(answer: CallAnswer, context: "grpc.aio.ServicerContext") -> None:
    """End the call with the code of an error, if the answer is one."""
    if answer.status == 200:
        return
    import grpc

    error = json.loads(answer.body)
    await context.abort(
        grpc.StatusCode[error["code"]], error["message"][:1000], _trailing_metadata(answer)
    )
