"""SageMaker's `POST /invocations`; its `GET /ping` is TorchServe's.

The body is JSON as Text Embeddings Inference and Hugging Face have it (`{"inputs": ...}`), or as
Vertex AI has it (`{"instances": [...]}`, answered `{"predictions": [...]}`); or one text as
text/plain; or one text a line as text/csv, quoted where it holds a comma, a quote or a line break.
The default model answers: labels by falling score, vectors, or the tokens for masks.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import Field, StrictBool, StrictStr

from serving.http.messages import JSON, Protocol, Refusal, Reply, Request, Route
from serving.interface import Models
from serving.protocols import default_format
from serving.protocols.forms import URL_ENCODED, media_type
from serving.protocols.json_bodies import Body, dump, parse, schema
from serving.protocols.kserve import Instance, texts_of
from serving.protocols.labels import ranked
from serving.protocols.texts import checked, decoded

CSV = "text/csv"
TEXT = "text/plain"

_AS_JSON = (JSON, "", URL_ENCODED)  # the last is what curl says of whatever -d sends


class Invocation(Body):
    """A body in JSON: `inputs` or `instances`."""

    inputs: StrictStr | list[StrictStr] | None = Field(
        None, description="a text or a list of texts"
    )
    instances: list[StrictStr | Instance] | None = Field(
        None, description='a list of texts, or of {"inputs": text}'
    )
    raw_scores: StrictBool = Field(False, description="logits instead of probabilities")
    truncate: StrictBool | None = Field(None, description="cut texts that are too long (default)")


class Asked(NamedTuple):
    """What a request asks. single: so that the answer is not a list. key: that holds the answer."""

    texts: Sequence[str]
    single: bool = False
    key: str | None = None
    raw_scores: bool = False
    truncate: bool = True


async def invoke(http: Request, models: Models) -> Reply:
    """The answers of the default model."""
    asked = read(http)
    checked(asked.texts, models.limits, "the request")
    found = await _answers(asked, models)
    answer: Any = found[0] if asked.single else found
    return Reply(dump(answer if asked.key is None else {asked.key: answer}))


def read(http: Request) -> Asked:
    """The texts of a request, however they were sent. Raises Refusal."""
    kind = media_type(http.headers.get("content-type", JSON))
    if kind == TEXT:
        return Asked([decoded(http.body, "the body")], single=True)
    if kind == CSV:
        return Asked(_lines(decoded(http.body, "the body")))
    if kind not in _AS_JSON:
        raise Refusal("malformed", f"content-type {kind[:60]!r}: send {JSON}, {TEXT} or {CSV}")
    request = parse(Invocation, http.body)
    options = (request.raw_scores, request.truncate is not False)
    if request.instances is not None:
        return Asked(texts_of(request.instances), False, "predictions", *options)
    if request.inputs is None:
        raise Refusal("malformed", "inputs is missing; expected a text or a list of texts")
    if isinstance(request.inputs, str):
        return Asked([request.inputs], True, None, *options)
    return Asked(request.inputs, False, None, *options)


async def _answers(asked: Asked, models: Models) -> list[Any]:
    task = models.find(None).task
    if task == "embedding":
        embedded = await models.embed(None, asked.texts, truncate=asked.truncate)
        return [vector.tolist() for vector in embedded.values]
    if task == "masked-lm":
        return [
            default_format.filled(masks) for masks in (await models.fill(None, asked.texts)).values
        ]
    predicted = await models.predict(None, asked.texts, truncate=asked.truncate)
    return [
        ranked(each.logits if asked.raw_scores else each.scores, predicted.model.labels)
        for each in predicted.values
    ]


def _lines(text: str) -> list[str]:
    """The texts of a table of one column. Raises Refusal where there are more columns."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise Refusal("malformed", f"the body is not CSV: {error}") from None
    for number, row in enumerate(rows, 1):
        if len(row) != 1:
            raise Refusal(
                "malformed",
                f"line {number} has {len(row)} columns: expected one text, in quotes where it "
                "holds a comma",
            )
    return [row[0] for row in rows]


def word(refusal: Refusal, _: int) -> bytes:
    """The JSON of an error."""
    return dump({"error": refusal.message})


PROTOCOL = Protocol(
    "sagemaker",
    (
        Route(
            "POST",
            "/invocations",
            invoke,
            "Ask the default model",
            body=schema(Invocation),
            media_types=(JSON, TEXT, CSV),
        ),
    ),
    word,
    {"wrong-task": 400, "failed": 500},
)
