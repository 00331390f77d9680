"""Classification as vLLM has it at `/classify` (SGLang: `/v1/classify`), and as infinity has it.

The two differ at one address: `x-api-style: infinity`, or `/infinity/classify`, asks for
the latter. The calls stand below the same prefixes as OpenAI's.
"""

import time
import uuid
from typing import Any

from pydantic import Field, StrictBool

from serving.http.messages import (
    HTTPError,
    Request,
    Response,
    Route,
    WireProtocol,
    bertha_version,
)
from serving.interface import InferenceResult, Models, Prediction
from serving.protocols.json_bodies import dump_json, json_response, json_schema, parse_body
from serving.protocols.labels import answer_index, rank_answer
from serving.protocols.openai import PREFIXES, STATUSES, TextsRequest, token_usage

ERROR_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
}


class ClassifyRequest(TextsRequest):
    """The body of `/classify`, of either style."""

    use_activation: StrictBool | None = Field(None, description="vLLM: logits where false")
    activation: StrictBool | None = Field(None, description="vLLM: the older name of that")
    softmax: StrictBool | None = Field(None, description="vLLM: the oldest name of that")
    raw_scores: StrictBool | None = Field(None, description="infinity: logits where true")

    def scores_of(self, prediction: Prediction) -> tuple[float, ...]:
        """Return the logits or the probabilities, as the request asks."""
        activations = (self.use_activation, self.activation, self.softmax)
        wants_logits = self.raw_scores or False in activations
        return prediction.logits if wants_logits else prediction.scores


async def classify(http: Request, models: Models) -> Response:
    """Return the label of each text, and the probability of each label."""
    request = parse_body(ClassifyRequest, http.body)
    texts = request.read_texts(models.limits)
    predicted = await models.predict(request.choose_model(http), texts)
    infinity = http.headers.get("x-api-style", "").lower() == "infinity"
    is_infinity = infinity or http.path.startswith("/infinity/")
    answer = {
        "id": f"classify-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "object": "classify" if is_infinity else "list",
        "model": predicted.model.name,
        "data": (_format_infinity if is_infinity else _format_vllm)(request, predicted),
        "usage": token_usage(predicted.num_tokens),
    }
    return json_response(answer)


def _format_vllm(
    request: ClassifyRequest, predicted: InferenceResult[Prediction]
) -> list[dict[str, Any]]:
    names = predicted.model.output_names
    return [
        {
            "index": index,
            "label": names[answer_index(prediction, predicted.model)],
            "probs": list(request.scores_of(prediction)),
            "num_classes": len(names),
        }
        for index, prediction in enumerate(predicted.values)
    ]


def _format_infinity(
    request: ClassifyRequest, predicted: InferenceResult[Prediction]
) -> list[list[dict[str, Any]]]:
    model = predicted.model
    return [rank_answer(each, model, request.scores_of(each)) for each in predicted.values]


def error_body(error: HTTPError, status: int) -> bytes:
    """Return the JSON of an error, of both styles."""
    kind = ERROR_TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    body = {"message": error.message, "type": kind, "param": None, "code": status}
    return dump_json({"error": body})


async def tell_version(_: Request, __: Models) -> Response:
    """Return the version of this server, for clients of vLLM and MLflow."""
    return json_response({"version": bertha_version()})


def _classify_route(path: str, summary: str) -> Route:
    return Route("POST", path, classify, summary, body_schema=json_schema(ClassifyRequest))


PROTOCOL = WireProtocol(
    "vllm",
    (
        *(
            _classify_route(f"{prefix}{version}/classify", "Classify texts")
            for prefix in PREFIXES
            for version in ("", "/v1")
        ),
        Route("GET", "/version", tell_version, "The version of this server"),
    ),
    error_body,
    STATUSES,
)
