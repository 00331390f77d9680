"""The HTTP server application: an ASGI callable that routes a request and sends the response.

No framework and one pass, because a short text costs about a millisecond in all. Enforces body
limits, API keys and request ids, and cancels the handler when the client disconnects.

    uvicorn.run(App(protocols.ALL, models), lifespan="off")
"""

import asyncio
import json
import logging
import random
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from serving.http.hosts import HostNames
from serving.http.keys import ApiKeys
from serving.http.messages import (
    HTTPError,
    Request,
    Response,
    WireProtocol,
    ignored_headers,
    ignored_keys,
    is_accepted,
    note_ignored,
    parse_deadline,
    request_deadline,
    truncated_headers,
    truncated_texts,
)
from serving.http.metrics import Metrics
from serving.http.routing import RouteMatch, Router
from serving.http.tracing import RequestTracer
from serving.interface import Models

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_QUERY_BYTES, MAX_QUERY_FIELDS = 8192, 100
MAX_GZIP_MEMBERS = 100
MAX_REQUEST_ID = 128

log = logging.getLogger(__name__)
access = logging.getLogger("bertha.access")


class App:
    """Serve `models` over HTTP in each of `protocols`.

    hosts: the names that requests may be addressed to; None for any.
    """

    def __init__(
        self,
        protocols: Sequence[WireProtocol],
        models: Models,
        *,
        keys: ApiKeys | None = None,
        hosts: HostNames | None = None,
        metrics: Metrics | None = None,
        log_requests: bool = False,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._router = Router(protocols)
        self._models = models
        self._keys, self._hosts = keys or ApiKeys(None), hosts
        self._metrics = metrics or Metrics()
        self._log_requests, self._tracer = log_requests, tracer

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request; websockets are closed, and there is nothing to do at startup."""
        if scope["type"] == "http":
            await self._handle_request(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise NotImplementedError(f"ASGI {scope['type']}; serve with lifespan='off'")

    async def _handle_request(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        method, path = scope["method"], scope["path"]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = _request_id(headers.get("x-request-id", "")[:MAX_REQUEST_ID])
        try:
            if self._hosts is not None:
                self._hosts.check_headers(scope["headers"])
            match = self._router.match("GET" if method == "HEAD" else method, path)
        except HTTPError as error:
            protocol, route_path = self._router.protocol_of_path(path), "unknown"
            response = protocol.error_response(error)
        else:
            protocol, route_path = match.protocol, match.route.path
            try:
                response = await self._run_handler(match, scope, headers, receive)
            except HTTPError as error:
                response = protocol.error_response(error)
            except _ClientDisconnected:
                seconds = time.perf_counter() - started
                self._metrics.record_request(protocol.name, route_path, 499, seconds)
                return
            except Exception:  # a bug of ours, whose details are not for the client
                log.exception("request %s to %s failed", request_id, route_path)
                message = f"an error of the server's own; its id is {request_id}"
                response = protocol.error_response(HTTPError("internal", message))
        seconds = time.perf_counter() - started
        timing = f"total;dur={1000 * seconds:.2f}"
        added = (("x-request-id", request_id), ("server-timing", timing))
        response = response._replace(headers=(*added, *response.headers))
        await _send_response(send, response, method == "HEAD")
        self._metrics.record_request(protocol.name, route_path, response.status, seconds)
        if self._log_requests:
            _log_request(request_id, protocol.name, route_path, response.status, seconds)
        if self._tracer is not None:
            attributes = {"protocol": protocol.name, "status": response.status}
            attributes["request_id"] = request_id
            self._tracer.record_span(headers, route_path, seconds, attributes)

    async def _run_handler(
        self, match: RouteMatch, scope: Mapping[str, Any], headers: dict[str, str], receive: Receive
    ) -> Response:
        self._keys.authorize(headers, match.route.scope)
        body = await self._read_body(headers, receive)
        query = _parse_query(scope["query_string"])
        request_deadline.set(parse_deadline(headers))
        truncated_texts.set([])
        ignored_keys.set([])
        request = Request(scope["method"], scope["path"], match.path_params, query, headers, body)
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.ensure_future(_cancel_on_disconnect(receive, task))
        try:
            response = await match.route.handler(request, self._models)
            if response.body and not is_accepted(headers.get("accept", ""), response.media_type):
                note_ignored(("accept",))
            noted = (*truncated_headers(), *ignored_headers())
            return response._replace(headers=(*response.headers, *noted))
        except asyncio.CancelledError:
            # Either the client left, and our own cancellation is undone here, or the server ends.
            if not watcher.done() or task.uncancel():
                raise
            raise _ClientDisconnected from None
        finally:
            watcher.cancel()

    async def _read_body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """Read and decompress the body; stop as soon as it is known to be too large."""
        max_bytes = self._models.limits.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > max_bytes:
            _raise_too_large(max_bytes)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientDisconnected
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > max_bytes:
                _raise_too_large(max_bytes)
        coding = headers.get("content-encoding", "identity").strip().lower().removeprefix("x-")
        return bytes(body) if coding == "identity" else _decompress(body, coding, max_bytes)


class _ClientDisconnected(Exception):
    """The client closed the connection before its response was ready."""


def _request_id(given: str) -> str:
    """Return the client's id, or a new one for none and for one that no header or log may hold."""
    if given and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(64):016x}"


def _parse_query(query: bytes) -> dict[str, str]:
    if query.count(b"&") >= MAX_QUERY_FIELDS or len(query) > MAX_QUERY_BYTES:
        raise HTTPError(
            "malformed",
            f"the query is larger than {MAX_QUERY_BYTES} bytes or {MAX_QUERY_FIELDS} fields",
        )
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


def _log_request(request_id: str, protocol: str, route: str, status: int, seconds: float) -> None:
    """Write one line of JSON; never a text, a key or an answer."""
    line = {"request_id": request_id, "protocol": protocol, "route": route, "status": status}
    access.info(json.dumps(line | {"milliseconds": round(1000 * seconds, 2)}))


def log_requests_to_stdout() -> None:
    """Send the access log to standard output, and nowhere else."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.handlers = [handler]
    access.propagate = False
    access.setLevel(logging.INFO)


async def _cancel_on_disconnect(receive: Receive, task: asyncio.Task[Any]) -> None:
    """Cancel `task` when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _decompress(body: bytearray, coding: str, max_bytes: int) -> bytes:
    """Decompress a gzip or deflate body; reject one that grows beyond `max_bytes`."""
    if coding not in ("gzip", "deflate"):
        raise HTTPError(
            "malformed", f"content-encoding {coding[:40]!r}: send gzip, deflate or identity"
        )
    plain, rest = bytearray(), bytes(body)
    # A gzip file is one member after another, as `cat a.gz b.gz` makes it; zlib reads one of them.
    for _ in range(MAX_GZIP_MEMBERS if coding == "gzip" else 1):
        inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
        try:
            plain += inflater.decompress(rest, max_bytes + 1 - len(plain))
        except zlib.error as error:
            raise HTTPError("malformed", f"the body is not {coding}: {error}") from None
        if len(plain) > max_bytes or inflater.unconsumed_tail:
            _raise_too_large(max_bytes)
        if not inflater.eof:
            raise HTTPError("malformed", f"the {coding} body ends too early")
        rest = inflater.unused_data
        if not rest:
            return bytes(plain)
    raise HTTPError("malformed", f"the {coding} body goes on behind its end; send one member")


def _raise_too_large(max_bytes: int) -> NoReturn:
    raise HTTPError("too-large", f"the body is larger than {max_bytes} bytes; send less at once")


async def _send_response(send: Send, response: Response, only_head: bool) -> None:
    headers = [
        (b"content-type", response.media_type.encode("latin-1")),
        (b"content-length", str(len(response.body)).encode()),
        *((k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in response.headers),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if only_head else response.body})
