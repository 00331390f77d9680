"""SageMaker's `POST /invocations`; its `GET /ping` is TorchServe's.

The body is JSON as Text Embeddings Inference and Hugging Face have it (`{"inputs": ...}`), or as
Vertex AI has it (`{"instances": [...]}`, answered `{"predictions": [...]}`); or one text as
text/plain; or one text a line as text/csv, quoted where it holds a comma, a quote or a line break.
A body that is JSON of one of these shapes is that, whatever its content type says.
The default model answers: labels by falling score, vectors, or the tokens for masks.
"""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import Field, StrictBool, StrictStr

from serving.http.messages import JSON, HTTPError, Request, Response, Route, WireProtocol
from serving.interface import ModelInfo, Models, Prediction
from serving.protocols import default_format
from serving.protocols.forms import URL_ENCODED, media_type
from serving.protocols.json_bodies import (
    PLAIN_STATUSES,
    ClientList,
    JSONBody,
    TextList,
    error_json,
    json_response,
    json_schema,
    parse_body,
    parse_if_shaped,
)
from serving.protocols.kserve import KServeInstance, instance_texts
from serving.protocols.labels import rank_answer
from serving.protocols.requests import check_texts, decode_utf8

CSV = "text/csv"
TEXT = "text/plain"

_JSON_TYPES = (JSON, "", URL_ENCODED)  # the last is what curl says of whatever -d sends


class InvocationBody(JSONBody):
    """A body in JSON: `inputs` or `instances`."""

    inputs: StrictStr | TextList | None = Field(None, description="a text or a list of texts")
    instances: ClientList[StrictStr | KServeInstance] | None = Field(
        None, description='a list of texts, or of {"inputs": text}'
    )
    raw_scores: StrictBool = Field(False, description="logits instead of probabilities")
    truncate: StrictBool | None = Field(None, description="cut texts that are too long (default)")


class SageMakerRequest(NamedTuple):
    """A request in any media type.

    single: one text, so that the answer is no list. key: of the object that holds the answer.
    """

    texts: Sequence[str]
    single: bool = False
    key: str | None = None
    raw_scores: bool = False
    truncate: bool = True


async def invoke(http: Request, models: Models) -> Response:
    """Answer with the default model."""
    request = parse_request(http)
    check_texts(request.texts, models.limits, "the request")

    def rank(prediction: Prediction, model: ModelInfo) -> list[dict[str, Any]]:
        return rank_answer(prediction, model, prediction.logits if request.raw_scores else None)

    answers = await default_format.answer_texts(models, None, request.texts, rank, request.truncate)
    answer: Any = answers[0] if request.single else answers
    return json_response(answer if request.key is None else {request.key: answer})


def parse_request(http: Request) -> SageMakerRequest:
    """Read the texts of a request in any media type. Raises HTTPError."""
    kind = media_type(http.headers.get("content-type", JSON))
    known = parse_if_shaped(InvocationBody, http.body)
    if known is not None and (known.inputs, known.instances) != (None, None):
        return _request_from(known)
    if kind == TEXT:
        return SageMakerRequest([decode_utf8(http.body, "the body")], single=True)
    if kind == CSV:
        return SageMakerRequest(_parse_csv(decode_utf8(http.body, "the body")))
    if kind not in _JSON_TYPES:
        raise HTTPError("malformed", f"content-type {kind[:60]!r}: send {JSON}, {TEXT} or {CSV}")
    return _request_from(parse_body(InvocationBody, http.body))


def _request_from(body: InvocationBody) -> SageMakerRequest:
    options = (body.raw_scores, body.truncate is not False)
    if body.instances is not None:
        return SageMakerRequest(instance_texts(body.instances), False, "predictions", *options)
    if body.inputs is None:
        raise HTTPError("malformed", "inputs is missing; expected a text or a list of texts")
    if isinstance(body.inputs, str):
        return SageMakerRequest([body.inputs], True, None, *options)
    return SageMakerRequest(body.inputs, False, None, *options)


def _parse_csv(text: str) -> list[str]:
    """Return the texts of a table of one column. Raises HTTPError if there are more columns."""
    # One limit for the whole process, so it only ever grows: to the largest body that was let in.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    texts, line = [], 1
    try:
        for row in rows:
            if len(row) > 1:
                raise HTTPError(
                    "malformed",
                    f"line {line} has {len(row)} columns: expected one text, in quotes where it "
                    "holds a comma",
                )
            texts += row
            line = rows.line_num + 1
    except csv.Error as error:
        raise HTTPError("malformed", f"line {line}: the body is not CSV: {error}") from None
    return texts


PROTOCOL = WireProtocol(
    "sagemaker",
    (
        Route(
            "POST",
            "/invocations",
            invoke,
            "Ask the default model",
            body_schema=json_schema(InvocationBody),
            media_types=(JSON, TEXT, CSV),
        ),
    ),
    error_json,
    PLAIN_STATUSES,
)
