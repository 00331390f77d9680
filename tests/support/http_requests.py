"""One request to the protocols without a server: route, handler, reply or refusal."""

import json
from collections.abc import Coroutine
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote

from serving import protocols
from serving.http.messages import Refusal, Reply, Request
from serving.http.routing import Routes
from tests.support.fake_models import FakeModels


@cache
def routes() -> Routes:
    return Routes(protocols.ALL)


def finish(handling: Coroutine[Any, Any, Reply]) -> Reply:
    """What a handler returns, without an event loop: these models never wait."""
    try:
        handling.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a handler waits for something that is no model")


def ask(
    models: FakeModels,
    method: str,
    target: str,
    body: Any = b"",
    headers: dict[str, str] | None = None,
) -> Reply:
    """The reply to a request; a body that is not bytes goes as JSON."""
    path, _, query = target.partition("?")
    if not isinstance(body, bytes):
        body, headers = (
            json.dumps(body).encode(),
            {"content-type": "application/json"} | (headers or {}),
        )
    match = routes().match(method, unquote(path))
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    request = Request(method, unquote(path), match.names, pairs, headers or {}, body)
    try:
        return finish(match.route.handle(request, models))
    except Refusal as refusal:
        return match.protocol.refuse(refusal)


def answer(models: FakeModels, method: str, target: str, body: Any = b"", **headers: str) -> Any:
    """The JSON of a request that is answered."""
    reply = ask(models, method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
    assert reply.status == 200, reply.body
    return json.loads(reply.body)


def error(models: FakeModels, method: str, target: str, body: Any = b"", **headers: str) -> Any:
    """Status and JSON of a request that is refused."""
    reply = ask(models, method, target, body, {k.replace("_", "-"): v for k, v in headers.items()})
    assert reply.status >= 400, reply.body
    assert reply.media_type == "application/json"
    return reply.status, json.loads(reply.body)
