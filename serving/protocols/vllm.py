"""Classification as vLLM has it at `/classify` (SGLang: `/v1/classify`), and as infinity has it.

The two differ at one address: `x-api-style: infinity`, or `/infinity/classify`, asks for
the latter.
"""

import time
import uuid
from typing import Any

from pydantic import Field, StrictBool

from serving.http.messages import Protocol, Refusal, Reply, Request, Route
from serving.interface import Answer, Models, Prediction
from serving.protocols.json_bodies import dump, parse, schema
from serving.protocols.labels import best, ranked
from serving.protocols.openai import STATUSES, TextsRequest, usage
from serving.protocols.texts import checked

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
}


class ClassifyRequest(TextsRequest):
    """The body of `/classify`, of either style."""

    use_activation: StrictBool | None = Field(None, description="vLLM: logits where false")
    raw_scores: StrictBool = Field(False, description="infinity: logits where true")

    @property
    def raw(self) -> bool:
        """Whether logits are asked for."""
        return self.raw_scores or self.use_activation is False


async def classify(http: Request, models: Models) -> Reply:
    """The label of each text, and the probability of each label."""
    request = parse(ClassifyRequest, http.body)
    predicted = await models.predict(request.model, checked(request.texts, models.limits, "input"))
    infinity = http.headers.get("x-api-style", "").lower() == "infinity"
    as_infinity = infinity or http.path.startswith("/infinity/")
    answered = _infinity(request, predicted) if as_infinity else _vllm(request, predicted)
    stamp = {"id": f"classify-{uuid.uuid4().hex}", "created": int(time.time())}
    return Reply(dump(stamp | answered))


def _vllm(request: ClassifyRequest, predicted: Answer[Prediction]) -> dict[str, Any]:
    names = predicted.model.names
    return {
        "object": "list",
        "model": predicted.model.name,
        "data": [
            {
                "index": index,
                "label": names[best(prediction)],
                "probs": list(prediction.logits if request.raw else prediction.scores),
                "num_classes": len(names),
            }
            for index, prediction in enumerate(predicted.values)
        ],
        "usage": usage(predicted.num_tokens),
    }


def _infinity(request: ClassifyRequest, predicted: Answer[Prediction]) -> dict[str, Any]:
    labels = predicted.model.labels
    return {
        "object": "classify",
        "model": predicted.model.name,
        "data": [
            ranked(prediction.logits if request.raw else prediction.scores, labels)
            for prediction in predicted.values
        ],
        "usage": usage(predicted.num_tokens),
    }


def word(refusal: Refusal, status: int) -> bytes:
    """The JSON of an error, of both styles."""
    kind = _TYPES.get(status, "InternalServerError" if status >= 500 else "BadRequestError")
    error = {"message": refusal.message, "type": kind, "param": None, "code": status}
    return dump({"error": error})


def _route(path: str, summary: str) -> Route:
    return Route("POST", path, classify, summary, body=schema(ClassifyRequest))


PROTOCOL = Protocol(
    "vllm",
    (
        _route("/classify", "Classify texts"),
        _route("/v1/classify", "Classify texts, as SGLang has it"),
        _route("/infinity/classify", "Classify texts, as infinity has it"),
    ),
    word,
    STATUSES,
)
