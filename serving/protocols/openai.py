"""OpenAI's `/v1/embeddings` and `/v1/models`.

`input` is a text or a list of texts; token ids are refused, for a tokenizer of ours would read them
as other words. The client asks for base64 by default: little-endian float32. `/v1/models` answers
KServe's question as well, `{"models": [names]}`.
"""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, StrictInt, StrictStr

from serving.http.messages import Kind, Protocol, Refusal, Reply, Request, Route
from serving.interface import Answer, ModelInfo, Models, Vector
from serving.protocols.json_bodies import Body, dump, parse, schema
from serving.protocols.texts import checked
from serving.protocols.vectors import shaped

OWNER = "bertha"
STATUSES: dict[Kind, int] = {"wrong-task": 400, "too-long": 400, "failed": 500}

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class TextsRequest(Body):
    """What OpenAI's calls about texts have in common."""

    input: StrictStr | list[StrictStr] = Field(
        description="a text or a list of texts; token ids are not read, send the text"
    )
    model: StrictStr | None = Field(None, description="name, name:version or name@alias")

    @property
    def texts(self) -> list[str]:
        """The texts in order."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingsRequest(TextsRequest):
    """The body of `/v1/embeddings`."""

    encoding_format: Literal["float", "base64"] = Field("float", description="of the vectors")
    dimensions: StrictInt | None = Field(None, ge=1, description="only the first so many")


async def embeddings(http: Request, models: Models) -> Reply:
    """The vectors of texts."""
    request = parse(EmbeddingsRequest, http.body)
    texts = checked(request.texts, models.limits, "input")
    return Reply(dump(answer(request, await models.embed(request.model, texts))))


def answer(request: EmbeddingsRequest, embedded: Answer[Vector]) -> dict[str, Any]:
    """The body that answers `request`."""
    vectors = [shaped(vector, True, request.dimensions) for vector in embedded.values]
    encode = _base64 if request.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "embedding": encode(vector), "index": index}
            for index, vector in enumerate(vectors)
        ],
        "model": embedded.model.name,
        "usage": usage(embedded.num_tokens),
    }


def usage(num_tokens: Sequence[int]) -> dict[str, int]:
    """The tokens that were computed."""
    total = sum(num_tokens)
    return {"prompt_tokens": total, "total_tokens": total}


def _base64(vector: Vector) -> str:
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")


def _floats(vector: Vector) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


async def models_list(_: Request, models: Models) -> Reply:
    """Every model by its name, then every version by name:version."""
    return Reply(dump(listing(models.all())))


def listing(infos: Sequence[ModelInfo]) -> dict[str, Any]:
    """The models; `models`, KServe's key, holds the bare names."""
    names: dict[str, Any] = {}
    for info in infos:
        names.setdefault(info.name, described(info, info.name))
    versions = [described(info, f"{info.name}:{info.version}") for info in infos]
    return {"object": "list", "data": [*names.values(), *versions], "models": [*names]}


def described(info: ModelInfo, reference: str) -> dict[str, Any]:
    """One model, by a name that it answers to."""
    return {"id": reference, "object": "model", "created": int(info.created), "owned_by": OWNER}


def word(refusal: Refusal, status: int) -> bytes:
    """The JSON of an error."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return dump(
        {
            "error": {
                "message": refusal.message,
                "type": kind,
                "param": None,
                "code": refusal.kind.replace("-", "_"),
            }
        }
    )


PROTOCOL = Protocol(
    "openai",
    (
        Route(
            "POST",
            "/v1/embeddings",
            embeddings,
            "The vectors of texts",
            body=schema(EmbeddingsRequest),
        ),
        Route(
            "POST",
            "/embeddings",
            embeddings,
            "The vectors of texts, as the older address has it",
            body=schema(EmbeddingsRequest),
        ),
        Route("GET", "/v1/models", models_list, "The models"),
    ),
    word,
    STATUSES,
)
