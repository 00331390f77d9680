"""The HTTP server application: an ASGI callable that routes a request and sends the response.

No framework and one pass, because a short text costs about a millisecond in all. Enforces body
limits, API keys and request ids, and cancels the handler when the client disconnects.

    uvicorn.run(App(protocols.ALL, models), lifespan="off")
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from serving.http.coding import (
    MAX_IN_LOOP_BYTES,
    MIN_COMPRESSED_BYTES,
    accepts_gzip,
    coding_name,
    compress,
    decompress,
    raise_too_large,
)
from serving.http.hosts import HostNames
from serving.http.keys import ApiKeys
from serving.http.log_lines import log_request
from serving.http.messages import (
    HTTPError,
    Request,
    RequestRecord,
    Response,
    WireProtocol,
    current_request,
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
from serving.http.origins import Headers, Origins
from serving.http.prefix import find_prefix, strip_prefix
from serving.http.routing import RouteMatch, Router
from serving.http.tracing import RequestTracer
from serving.interface import Models

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_QUERY_BYTES, MAX_QUERY_FIELDS = 8192, 100
MAX_REQUEST_ID = 128
OWN_CHECKS = "/-/"  # begins the paths at which the front asks, every second
MAX_ADDRESS = 45  # characters of one of IPv6

log = logging.getLogger(__name__)


class App:
    """Serve `models` over HTTP in each of `protocols`.

    hosts: the names that requests may be addressed to; None for any. origins: whose pages may read
    answers; None for none. root_path: the prefix of the paths that a proxy passes on.
    """

    def __init__(
        self,
        protocols: Sequence[WireProtocol],
        models: Models,
        *,
        keys: ApiKeys | None = None,
        hosts: HostNames | None = None,
        origins: Origins | None = None,
        root_path: str = "",
        metrics: Metrics | None = None,
        log_requests: bool = False,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._router = Router(protocols)
        self._models = models
        self._keys, self._hosts = keys or ApiKeys(None), hosts
        self._origins, self._root_path = origins or Origins(), root_path
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
        method = scope["method"]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = _request_id(headers.get("x-request-id", "")[:MAX_REQUEST_ID])
        record = RequestRecord(request_id, _client_address(scope, headers))
        current_request.set(record)
        routed = self._find_route(scope, headers)
        protocol, match, response = routed.protocol, routed.match, routed.response
        route_path = "unknown" if match is None else match.route.path
        if match is not None:
            try:
                response = await self._run_handler(match, scope, routed, headers, receive, record)
            except HTTPError as error:
                response = protocol.error_response(error)
            except _ClientDisconnected:
                seconds = time.perf_counter() - started
                self._record(record, headers, protocol.name, route_path, 499, seconds)
                return
            except Exception:  # a bug of ours, whose details are not for the client
                log.exception("request %s to %s failed", request_id, route_path)
                message = f"an error of the server's own; its id is {request_id}"
                response = protocol.error_response(HTTPError("internal", message))
        response = await _encode_response(response, headers.get("accept-encoding", ""))
        seconds = time.perf_counter() - started
        timing = f"total;dur={1000 * seconds:.2f}"
        added = (("x-request-id", request_id), ("server-timing", timing), *routed.shared)
        response = response._replace(headers=(*added, *response.headers))
        await _send_response(send, response, method == "HEAD")
        self._record(record, headers, protocol.name, route_path, response.status, seconds)

    def _record(
        self,
        record: RequestRecord,
        headers: Mapping[str, str],
        protocol: str,
        route: str,
        status: int,
        seconds: float,
    ) -> None:
        """Count, log and trace a request that was answered, or that its client left (499)."""
        self._metrics.record_request(protocol, route, status, seconds)
        if self._log_requests and not route.startswith(OWN_CHECKS):
            log_request(record, protocol, route, status, seconds)
        if self._tracer is not None:
            attributes = {"protocol": protocol, "status": status, "request_id": record.id}
            if record.model:
                attributes |= {"model": record.model, "version": record.version}
            self._tracer.record_span(headers, route, seconds, attributes)

    def _find_route(self, scope: Mapping[str, Any], headers: dict[str, str]) -> "_Routed":
        """Find the route of a request, or write what answers it without one."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        prefix = find_prefix(headers, self._root_path)
        path = self._strip_prefix(scope["path"], prefix)
        protocol = self._router.protocol_of_path(path)
        shared: Headers = ()
        try:
            if self._hosts is not None:
                self._hosts.check_headers(scope["headers"])
            if self._origins:
                routes = self._router.list_routes(path)
                shared, answer = self._origins.share_path(method, routes, headers)
                if answer is not None:
                    return _Routed(protocol, None, answer, path, prefix, shared)
            match = self._router.match(method, path)
        except HTTPError as error:
            return _Routed(protocol, None, protocol.error_response(error), path, prefix, shared)
        return _Routed(match.protocol, match, Response(), path, prefix, shared)

    def _strip_prefix(self, path: str, prefix: str) -> str:
        """Return a path without the prefix that a proxy left on it.

        One that is a route as it is stays so: most proxies take their prefix off.
        """
        inner = strip_prefix(path, prefix)
        return path if inner is None or self._router.list_routes(path) else inner

    async def _run_handler(
        self,
        match: RouteMatch,
        scope: Mapping[str, Any],
        routed: "_Routed",
        headers: dict[str, str],
        receive: Receive,
        record: RequestRecord,
    ) -> Response:
        record.key = self._keys.authorize(headers, match.route.scope)
        body = await self._read_body(headers, receive)
        query = _parse_query(scope["query_string"])
        request_deadline.set(parse_deadline(headers))
        truncated_texts.set([])
        ignored_keys.set([])
        path, params, prefix = routed.path, match.path_params, routed.prefix
        request = Request(scope["method"], path, params, query, headers, body, prefix)
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
            raise_too_large(max_bytes)
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientDisconnected
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > max_bytes:
                raise_too_large(max_bytes)
        coding = coding_name(headers.get("content-encoding", ""))
        return bytes(body) if coding == "identity" else decompress(body, coding, max_bytes)


class _Routed(NamedTuple):
    """Where a request goes: to the route of `match`, or, without one, back with `response`.

    path: without `prefix`. shared: headers of any answer, for pages of other origins.
    """

    protocol: WireProtocol
    match: RouteMatch | None
    response: Response
    path: str
    prefix: str
    shared: Headers


class _ClientDisconnected(Exception):
    """The client closed the connection before its response was ready."""


def _request_id(given: str) -> str:
    """Return the client's id, or a new one for none and for one that no header or log may hold."""
    if given and given.isascii() and given.isprintable():
        return given
    return f"{random.getrandbits(64):016x}"


def _client_address(scope: Mapping[str, Any], headers: Mapping[str, str]) -> str:
    """Return the address that a request came from: of the front's client, which it adds last."""
    forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return forwarded[:MAX_ADDRESS] or str((scope.get("client") or ("",))[0])


def _parse_query(query: bytes) -> dict[str, str]:
    if query.count(b"&") >= MAX_QUERY_FIELDS or len(query) > MAX_QUERY_BYTES:
        raise HTTPError(
            "malformed",
            f"the query is larger than {MAX_QUERY_BYTES} bytes or {MAX_QUERY_FIELDS} fields",
        )
    return dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))


async def _cancel_on_disconnect(receive: Receive, task: asyncio.Task[Any]) -> None:
    """Cancel `task` when the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


async def _encode_response(response: Response, accepted: str) -> Response:
    """Compress a body that is worth it, if the client wants that; a large one in a thread."""
    body = response.body
    if len(body) < MIN_COMPRESSED_BYTES:
        return response
    headers = (*response.headers, ("vary", "Accept-Encoding"))
    if accepts_gzip(accepted):
        large = len(body) > MAX_IN_LOOP_BYTES
        packed = await asyncio.to_thread(compress, body) if large else compress(body)
        if len(packed) < len(body):
            body, headers = packed, (*headers, ("content-encoding", "gzip"))
    return response._replace(body=body, headers=headers)


async def _send_response(send: Send, response: Response, only_head: bool) -> None:
    described = (
        (b"content-type", response.media_type.encode("latin-1")),
        (b"content-length", str(len(response.body)).encode()),
    )
    headers = [
        *(() if response.status == 204 else described),
        *((k.encode("latin-1"), v.encode("latin-1", "replace")) for k, v in response.headers),
    ]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if only_head else response.body})
