"""TorchServe's inference API: `/predictions`, `/explanations`, `/ping`, and `OPTIONS /`.

The text may come as it is, as JSON, or in the field `data` of a form; a JSON list of texts is a
batch, and its answer a list. The answer to a text is the plain one of the model's task.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import Field, RootModel, StrictInt, StrictStr, ValidationError

from serving.http.messages import JSON, Handler, Kind, Protocol, Refusal, Reply, Request, Route
from serving.http.openapi import document
from serving.http.version import version
from serving.interface import Models
from serving.protocols import default_format, forms
from serving.protocols.json_bodies import Body, dump, parse, schema, shown
from serving.protocols.paths import model_of
from serving.protocols.texts import checked, decoded

STATUSES: dict[Kind, int] = {"wrong-task": 400, "failed": 500}

_EXPECTED = 'a text, a list of texts, or {"data": either}'
_FIELDS = ("data", "body")  # in the order in which TorchServe's handlers look
_FORM = re.compile(rb"(?:^|&)(?:data|body)=")
_TYPES: dict[Kind, str] = {
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


class DataObject(Body):
    """Texts in an object. target: the label to explain."""

    data: StrictStr | list[StrictStr] | None = None
    body: StrictStr | list[StrictStr] | None = None
    target: StrictStr | StrictInt | None = None


class Data(RootModel[StrictStr | list[StrictStr] | DataObject]):
    """A body in JSON."""

    root: StrictStr | list[StrictStr] | DataObject = Field(description=_EXPECTED)


class Asked(NamedTuple):
    """What a request asks about. single: so that the answer is not a list."""

    texts: Sequence[str]
    single: bool
    target: str | int | None = None


async def predict(http: Request, models: Models) -> Reply:
    """The plain answer, or a list of them."""
    asked = read(http)
    texts = checked(asked.texts, models.limits, "data")
    answers = await default_format.answers(models, model_of(http), texts)
    return Reply(dump(answers[0] if asked.single else answers))


async def explain(http: Request, models: Models) -> Reply:
    """Which words spoke for the label."""
    asked = read(http)
    texts = checked(asked.texts, models.limits, "data")
    target = http.query.get("target", asked.target)
    explained = await default_format.explanations(models, model_of(http), texts, target)
    return Reply(dump(explained[0] if asked.single else explained))


async def ping(_: Request, models: Models) -> Reply:
    """Whether the default model answers."""
    if not await models.ready():
        raise Refusal("unready", "Unhealthy: the default model does not answer yet")
    return Reply(dump({"status": "Healthy"}))


async def describe(_: Request, __: Models) -> Reply:
    """This API, as OpenAPI."""
    return Reply(dump(document([PROTOCOL], "TorchServe's inference API", version())))


def read(http: Request) -> Asked:
    """The texts of a request, however they were sent. Raises Refusal."""
    content_type = http.headers.get("content-type", "")
    kind = forms.media_type(content_type)
    if kind == JSON:
        return _of_json(http.body)
    if kind == forms.MULTIPART:
        return _of_form(forms.fields(content_type, http.body))
    if kind == forms.URL_ENCODED and _FORM.search(http.body):  # curl says so of whatever -d sends
        return _of_form(forms.fields(content_type, http.body))
    return _of_text(decoded(http.body, "the body"))


def _of_form(found: Mapping[str, str]) -> Asked:
    for name in _FIELDS:
        if name in found:
            return _of_text(found[name])._replace(target=found.get("target"))
    raise Refusal("malformed", f"the form has {shown(sorted(found))}: expected a field `data`")


def _of_text(text: str) -> Asked:
    """One text; or texts, where it is a list of texts in JSON."""
    if text.lstrip().startswith("["):
        try:
            texts = _Texts.model_validate_json(text.encode(errors="replace"))
        except ValidationError:
            pass  # a text that begins with a bracket
        else:
            return Asked(texts.root, single=False)
    return Asked([text], single=True)


def _of_json(body: bytes) -> Asked:
    root = parse(Data, body).root
    target = None
    if isinstance(root, DataObject):
        target = root.target
        value = root.data if root.data is not None else root.body
        if value is None:
            raise Refusal("malformed", f"the body has neither data nor body: expected {_EXPECTED}")
        root = value
    return Asked([root], True, target) if isinstance(root, str) else Asked(root, False, target)


class _Texts(RootModel[list[StrictStr]]):
    """A list of texts in JSON."""


def word(refusal: Refusal, status: int) -> bytes:
    """The JSON of an error."""
    kind = _TYPES.get(refusal.kind, "BadRequestException")
    return dump({"code": status, "type": kind, "message": refusal.message})


def _of_model(call: str, handle: Handler, summary: str, query: Mapping[str, str]) -> list[Route]:
    """The addresses of a call, with a version and without; curl -T sends PUT."""
    return [
        Route(
            method,
            path,
            handle,
            summary,
            body=schema(Data),
            media_types=(JSON, "text/plain", forms.URL_ENCODED, forms.MULTIPART),
            query=query,
        )
        for path in (f"/{call}/{{model}}", f"/{call}/{{model}}/{{version}}")
        for method in ("POST", "PUT")
    ]


_TARGET = {"target": "the label to explain, or its index; by default the likeliest"}

PROTOCOL = Protocol(
    "torchserve",
    (
        *_of_model("predictions", predict, "Ask a model", {}),
        *_of_model("explanations", explain, "Which words spoke for a label", _TARGET),
        Route("GET", "/ping", ping, "Whether the default model answers", "open"),
        Route("OPTIONS", "/", describe, "This API, as OpenAPI", "open"),
    ),
    word,
    STATUSES,
)
