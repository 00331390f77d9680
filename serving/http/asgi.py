"""The HTTP surface: an ASGI callable that reads a request, finds its route and sends the reply.

As little Python a request as possible: no framework, one pass. Decides limits of bodies, keys,
request ids and what a client that went away costs. Knows no protocol and no model.

    uvicorn.run(Surface(protocols.ALL, models), lifespan="off")
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

from serving.http import deadline
from serving.http.keys import Keys
from serving.http.messages import Protocol, Refusal, Reply, Request
from serving.http.metrics import Meters
from serving.http.routing import Match, Routes
from serving.http.tracing import Traces
from serving.interface import Models

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

log = logging.getLogger(__name__)
access = logging.getLogger("bertha.access")


class Surface:
    """Answers HTTP for `models` in the words of `protocols`."""

    def __init__(
        self,
        protocols: Sequence[Protocol],
        models: Models,
        *,
        keys: Keys | None = None,
        meters: Meters | None = None,
        log_requests: bool = False,
        traces: Traces | None = None,
    ) -> None:
        self._routes = Routes(protocols)
        self._models = models
        self._keys = keys or Keys.open()
        self._meters = meters or Meters()
        self._log_requests, self._traces = log_requests, traces

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, or the start and end of a server, which need nothing."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        method, path = scope["method"], scope["path"]
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = headers.get("x-request-id", "")[:128] or f"{random.getrandbits(64):016x}"
        protocol = self._routes.speaker(path)
        route_path = "unknown"
        try:
            match = self._routes.match("GET" if method == "HEAD" else method, path)
            protocol, route_path = match.protocol, match.route.path
            reply = await self._answer(match, scope, headers, receive)
        except Refusal as refusal:
            reply = protocol.refuse(refusal)
        except _Gone:
            self._meters.count(protocol.name, route_path, 499, time.perf_counter() - started)
            return
        except Exception:  # ours, and never the client's to read
            log.exception("request %s to %s failed", request_id, route_path)
            internal = Refusal("internal", f"an error of the server's own; its id is {request_id}")
            reply = protocol.refuse(internal)
        seconds = time.perf_counter() - started
        told = ("x-request-id", request_id), ("server-timing", f"total;dur={1000 * seconds:.2f}")
        await _send(send, reply._replace(headers=(*told, *reply.headers)), method == "HEAD")
        self._meters.count(protocol.name, route_path, reply.status, seconds)
        if self._log_requests:
            _log_line(request_id, protocol.name, route_path, reply.status, seconds)
        if self._traces is not None:
            facts = {"protocol": protocol.name, "status": reply.status, "request_id": request_id}
            self._traces.record(headers, route_path, seconds, facts)

    async def _answer(
        self, match: Match, scope: Mapping[str, Any], headers: dict[str, str], receive: Receive
    ) -> Reply:
        """The reply of the route. Raises Refusal, and _Gone where the client left meanwhile."""
        self._keys.admit(headers, match.route.scope)
        body = await self._body(headers, receive)
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        deadline.deadline.set(deadline.of(headers))
        request = Request(scope["method"], scope["path"], match.names, query, headers, body)
        task = asyncio.current_task()
        assert task is not None
        leaving = asyncio.ensure_future(_departure(receive, task))
        try:
            return await match.route.handle(request, self._models)
        except asyncio.CancelledError:
            if not leaving.done() or task.uncancel():
                raise  # the server ends
            raise _Gone from None
        finally:
            leaving.cancel()

    async def _body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The whole body, decompressed; refused as soon as it is known to be too large."""
        most = self._models.limits.max_body_bytes
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            _too_large(most)
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body"):
            body = await _rest(body, receive, most)
        if message["type"] == "http.disconnect":
            raise _Gone
        if len(body) > most:
            _too_large(most)
        coding = headers.get("content-encoding", "identity").strip().lower()
        return body if coding == "identity" else _decompressed(body, coding, most)


class _Gone(Exception):
    """The client closed the connection before its answer was there."""


def _log_line(request_id: str, protocol: str, route: str, status: int, seconds: float) -> None:
    """One line of JSON; never a text, a key or an answer."""
    line = {
        "request_id": request_id,
        "protocol": protocol,
        "route": route,
        "status": status,
        "milliseconds": round(1000 * seconds, 2),
    }
    access.info(json.dumps(line))


def show_requests() -> None:
    """Let the line of each request go to standard output, and nowhere else."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.handlers = [handler]
    access.propagate = False
    access.setLevel(logging.INFO)


async def _rest(body: bytes, receive: Receive, most: int) -> bytes:
    parts = bytearray(body)
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts += message.get("body", b"")
        if len(parts) > most:
            _too_large(most)
        if not message.get("more_body"):
            return bytes(parts)


async def _departure(receive: Receive, task: asyncio.Task[Any]) -> None:
    """Cancel `task` when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _decompressed(body: bytes, coding: str, most: int) -> bytes:
    """A gzip or deflate body, refused where it would grow beyond `most` bytes."""
    if coding not in ("gzip", "deflate"):
        raise Refusal(
            "malformed", f"content-encoding {coding[:40]!r}: send gzip, deflate or identity"
        )
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    try:
        plain = inflater.decompress(body, most + 1)
    except zlib.error as error:
        raise Refusal("malformed", f"the body is not {coding}: {error}") from None
    if len(plain) > most or inflater.unconsumed_tail:
        _too_large(most)
    if not inflater.eof:
        raise Refusal("malformed", f"the {coding} body ends too early")
    return plain


def _too_large(most: int) -> NoReturn:
    raise Refusal("too-large", f"the body is larger than {most} bytes; send less at once")


async def _send(send: Send, reply: Reply, only_head: bool) -> None:
    headers = [
        (b"content-type", reply.media_type.encode("latin-1")),
        (b"content-length", str(len(reply.body)).encode()),
        *((name.encode("latin-1"), _latin(value)) for name, value in reply.headers),
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if only_head else reply.body})


def _latin(value: str) -> bytes:
    return value.encode("latin-1", "replace")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
