"""KServe V1: `:predict` and `:explain`.

An instance is answered in the default format of the model's task. The list of models, and whether
one is ready, are answered with OpenAI's (`/v1/models`, `/v1/models/{model}`).
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, StrictInt, StrictStr

from serving.http.messages import Request, Response, Route, WireProtocol
from serving.interface import Models
from serving.protocols import default_format
from serving.protocols.json_bodies import (
    PLAIN_STATUSES,
    ClientList,
    JSONBody,
    error_json,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.requests import check_texts, requested_model


class KServeInstance(JSONBody):
    """A text in an object, as Vertex AI sends it."""

    inputs: StrictStr


class KServePredictRequest(JSONBody):
    """The body of `:predict` and `:explain`."""

    refused: ClassVar[dict[str, str]] = {
        "parameters": "this call has no options; `POST /hf/{model}` and /invocations have them",
        "inputs": "send the texts as `instances`",
        "signature_name": "a model here has one signature; leave it out",
    }

    instances: ClientList[StrictStr | KServeInstance] = Field(
        description='a list of texts, or of {"inputs": text}'
    )
    target: StrictStr | StrictInt | None = Field(
        None, description="the label to explain, or its index; by default the answer"
    )


def instance_texts(instances: Sequence[str | KServeInstance]) -> list[str]:
    """Return the texts of instances, in order."""
    return [each if isinstance(each, str) else each.inputs for each in instances]


async def predict(http: Request, models: Models) -> Response:
    """Answer each text in the default format."""
    request = parse_body(KServePredictRequest, http.body)
    texts = check_texts(instance_texts(request.instances), models.limits, "instances")
    answers = await default_format.answer_texts(models, requested_model(http), texts)
    return json_response({"predictions": answers})


async def explain(http: Request, models: Models) -> Response:
    """Attribute the label of each text to its words."""
    request = parse_body(KServePredictRequest, http.body)
    texts = check_texts(instance_texts(request.instances), models.limits, "instances")
    model = requested_model(http)
    explanations = await default_format.explain_texts(models, model, texts, request.target)
    return json_response({"explanations": explanations})


_BODY = json_schema(KServePredictRequest)

PROTOCOL = WireProtocol(
    "kserve",
    (
        Route("POST", "/v1/models/{model}:predict", predict, "Ask a model", body_schema=_BODY),
        Route(
            "POST",
            "/v1/models/{model}:explain",
            explain,
            "Which words spoke for a label",
            body_schema=_BODY,
        ),
    ),
    error_json,
    PLAIN_STATUSES,
)
