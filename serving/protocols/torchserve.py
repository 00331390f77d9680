"""TorchServe's inference API: `/predictions`, `/explanations`, `/ping`, and `OPTIONS /`.

The text may come as it is, as JSON, or in the field `data` of a form; a JSON list of texts, or of
objects with `data`, is a batch, and its answer a list. A text is answered in the default format of
the model's task.

A body that is JSON of a known shape (a string, a list of them, an object with `data` or `body`) is
read as that, whatever its content type says: curl calls what `-d` sends a form, and other clients
say nothing. Other JSON objects and lists are refused, for their envelope would be classified
instead of the text in it; as text/plain they are texts.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field, RootModel, StrictInt, StrictStr
from pydantic_core import from_json

from serving.http.messages import (
    JSON,
    ErrorKind,
    Handler,
    HTTPError,
    Request,
    Response,
    Route,
    WireProtocol,
    bertha_version,
)
from serving.http.openapi import build_openapi
from serving.interface import Models
from serving.protocols import default_format, forms
from serving.protocols.json_bodies import (
    PLAIN_STATUSES,
    ClientList,
    JSONBody,
    TextList,
    dump_json,
    json_response,
    json_schema,
    parse_body,
    parse_if_shaped,
    truncate_repr,
)
from serving.protocols.requests import check_texts, decode_body, requested_model

_EXPECTED = 'a text, a list of texts or of {"data": text}, or {"data": a text or a list}'
_AS_TEXT = "to have this very JSON read as a text, send it as text/plain"
_FIELDS = ("data", "body")  # in the order in which TorchServe's handlers look
_FORM = re.compile(rb"(?:^|&)(?:data|body)=")
_ERROR_TYPES: dict[ErrorKind, str] = {
    "no-model": "ModelNotFoundException",
    "no-route": "ResourceNotFoundException",
    "no-method": "MethodNotAllowedException",
    "unauthorized": "InvalidKeyException",
    "forbidden": "InvalidKeyException",
    "too-large": "RequestEntityTooLargeException",
    "overloaded": "ServiceUnavailableException",
    "unready": "ServiceUnavailableException",
    "late": "ServiceUnavailableException",
    "failed": "InternalServerException",
    "internal": "InternalServerException",
}  # all else is BadRequestException


class TorchServeRow(JSONBody):
    """One text in an object."""

    data: StrictStr | None = None
    body: StrictStr | None = None


class TorchServeObject(JSONBody):
    """Texts in an object. target: the label to explain."""

    data: StrictStr | TextList | None = Field(None, description="a text or a list of texts")
    body: StrictStr | TextList | None = Field(None, description="the same by its other name")
    target: StrictStr | StrictInt | None = Field(
        None, description="the label to explain, or its index; by default the answer"
    )


_Body = StrictStr | TextList | ClientList[TorchServeRow] | TorchServeObject


class TorchServeBody(RootModel[_Body]):
    """A body in JSON."""

    root: _Body = Field(description=_EXPECTED)


class TorchServeRequest(NamedTuple):
    """A request in any media type. single: one text, so that the answer is no list."""

    texts: Sequence[str]
    single: bool
    target: str | int | None = None


async def predict(http: Request, models: Models) -> Response:
    """Answer each text in the default format."""
    request = parse_request(http)
    texts = check_texts(request.texts, models.limits, "data")
    answers = await default_format.answer_texts(models, requested_model(http), texts)
    return json_response(answers[0] if request.single else answers)


async def explain(http: Request, models: Models) -> Response:
    """Attribute the label of each text to its words."""
    request = parse_request(http)
    texts = check_texts(request.texts, models.limits, "data")
    target = http.query.get("target", request.target)
    explained = await default_format.explain_texts(models, requested_model(http), texts, target)
    return json_response(explained[0] if request.single else explained)


async def ping(_: Request, models: Models) -> Response:
    """Answer 200 if the default model answers."""
    if not await models.is_ready():
        raise HTTPError("unready", "Unhealthy: the default model does not answer yet")
    return json_response({"status": "Healthy"})


async def describe_api(http: Request, _: Models) -> Response:
    """Return this API as OpenAPI."""
    title = "TorchServe's inference API"
    return json_response(build_openapi([PROTOCOL], title, bertha_version(), http.prefix))


def parse_request(http: Request) -> TorchServeRequest:
    """Read the texts of a request in any media type. Raises HTTPError."""
    content_type = http.headers.get("content-type", "")
    kind = forms.media_type(content_type)
    known = _parse_known_shape(http.body)
    if known is not None:
        return known
    if kind == JSON:
        return _parse_json(http.body)
    # curl says URL-encoded of whatever -d sends, so that type alone makes no form.
    if kind == forms.MULTIPART or (kind == forms.URL_ENCODED and _FORM.search(http.body)):
        fields = forms.parse_form(content_type, http.body)
        for name in _FIELDS:
            if name in fields:
                request = _parse_text(fields[name])
                return request._replace(target=fields.get("target", request.target))
        raise HTTPError(
            "malformed", f"the form has {truncate_repr(sorted(fields))}: expected a field `data`"
        )
    text = decode_body(http.body)
    if not kind.startswith("text/") and _looks_like_json(text):
        try:
            return _parse_json(http.body)
        except HTTPError as error:
            raise HTTPError("malformed", f"{error.message}; {_AS_TEXT}") from None
    return TorchServeRequest([text], single=True)


def _parse_text(text: str) -> TorchServeRequest:
    """Read the field of a form: JSON of a known shape, else one text."""
    known = _parse_known_shape(text.encode(errors="replace"))
    return TorchServeRequest([text], single=True) if known is None else known


def _parse_known_shape(body: bytes) -> TorchServeRequest | None:
    """Return the texts of a body that is JSON of a known shape, None for any other body."""
    parsed = parse_if_shaped(TorchServeBody, body)
    if parsed is None:
        return None
    root = parsed.root
    objects = [root] if isinstance(root, TorchServeObject) else root
    for each in objects:
        if not isinstance(each, str) and (each.data, each.body) == (None, None):
            return None
    return _request_from(parsed)


def _looks_like_json(text: str) -> bool:
    """Return whether a text is an object in braces, complete or not, or a list in JSON."""
    text = text.strip()
    if text.startswith("{"):
        return text.endswith("}")
    try:
        return text.startswith("[") and isinstance(from_json(text), list)
    except ValueError:
        return False


def _parse_json(body: bytes) -> TorchServeRequest:
    return _request_from(parse_body(TorchServeBody, body))


def _request_from(body: TorchServeBody) -> TorchServeRequest:
    root, target = body.root, None
    if isinstance(root, TorchServeObject):
        target = root.target
        value = root.data if root.data is not None else root.body
        if value is None:
            raise HTTPError(
                "malformed", f"the body has neither data nor body: expected {_EXPECTED}"
            )
        root = value
    if isinstance(root, str):
        return TorchServeRequest([root], True, target)
    return TorchServeRequest([_row_text(each) for each in root], False, target)


def _row_text(row: str | TorchServeRow) -> str:
    if isinstance(row, str):
        return row
    text = row.data if row.data is not None else row.body
    if text is None:
        raise HTTPError("malformed", f"a row has neither data nor body: expected {_EXPECTED}")
    return text


def error_body(error: HTTPError, status: int) -> bytes:
    """Return the JSON of an error."""
    kind = _ERROR_TYPES.get(error.kind, "BadRequestException")
    return dump_json({"code": status, "type": kind, "message": error.message})


def _model_routes(
    call: str, handler: Handler, summary: str, query: Mapping[str, str]
) -> list[Route]:
    """Return the routes of a call, with a version and without; curl -T sends PUT."""
    return [
        Route(
            method,
            path,
            handler,
            summary,
            body_schema=json_schema(TorchServeBody),
            media_types=(JSON, "text/plain", forms.URL_ENCODED, forms.MULTIPART),
            query=query,
        )
        for path in (f"/{call}/{{model}}", f"/{call}/{{model}}/{{version}}")
        for method in ("POST", "PUT")
    ]


_TARGET = {"target": "the label to explain, or its index; by default the answer"}

PROTOCOL = WireProtocol(
    "torchserve",
    (
        *_model_routes("predictions", predict, "Ask a model", {}),
        *_model_routes("explanations", explain, "Which words spoke for a label", _TARGET),
        Route("GET", "/ping", ping, "Whether the default model answers", "open"),
        Route("OPTIONS", "/", describe_api, "This API, as OpenAPI", "open"),
    ),
    error_body,
    PLAIN_STATUSES,
)
