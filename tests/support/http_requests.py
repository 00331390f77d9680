"""One request to the protocols without a server: route, handler, response or refusal."""

import json
from collections.abc import Coroutine
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, unquote

from serving import protocols
from serving.http.messages import HTTPError, Request, Response
from serving.http.routing import Router
from tests.support.fake_models import FakeModels


@cache
def make_router() -> Router:
    return Router(protocols.ALL)


def run_coroutine(handling: Coroutine[Any, Any, Response]) -> Response:
    """What a handler returns, without an event loop: these models never wait."""
    try:
        handling.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a handler waits for something that is no model")


def send_request(
    models: FakeModels,
    method: str,
    target: str,
    body: Any = b"",
    headers: dict[str, str] | None = None,
) -> Response:
    """The response to a request; a body that is not bytes goes as JSON."""
    path, _, query = target.partition("?")
    if not isinstance(body, bytes):
        body, headers = (
            json.dumps(body).encode(),
            {"content-type": "application/json"} | (headers or {}),
        )
    match = make_router().match(method, unquote(path))
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    request = Request(method, unquote(path), match.path_params, pairs, headers or {}, body)
    try:
        return run_coroutine(match.route.handler(request, models))
    except HTTPError as refusal:
        return match.protocol.error_response(refusal)


def json_answer(
    models: FakeModels, method: str, target: str, body: Any = b"", **headers: str
) -> Any:
    """The JSON of a request that is answered."""
    response = send_request(
        models, method, target, body, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert response.status == 200, response.body
    return json.loads(response.body)


def json_error(
    models: FakeModels, method: str, target: str, body: Any = b"", **headers: str
) -> Any:
    """Status and JSON of a request that is refused."""
    response = send_request(
        models, method, target, body, {k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert response.status >= 400, response.body
    assert response.media_type == "application/json"
    return response.status, json.loads(response.body)
