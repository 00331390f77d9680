"""OpenAI's `/v1/embeddings` and `/v1/models`.

`input` is a text or a list of texts; token ids are refused, because they are of another tokenizer.
The client asks for base64 by default: little-endian float32. `/v1/models` answers KServe's question
as well, `{"models": [names]}`.
"""

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, StrictInt, StrictStr

from serving.http.messages import ErrorKind, HTTPError, Request, Response, Route, WireProtocol
from serving.interface import ModelInfo, Models, Vector
from serving.protocols.embeddings import resize_embedding
from serving.protocols.json_bodies import (
    JSONBody,
    TextList,
    dump_json,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.requests import check_texts

OWNER = "bertha"
STATUSES: dict[ErrorKind, int] = {"wrong-task": 400, "too-long": 400, "failed": 500}

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class TextsRequest(JSONBody):
    """What OpenAI's calls about texts have in common."""

    input: StrictStr | TextList = Field(
        description="a text or a list of texts; token ids are not read, send the text"
    )
    model: StrictStr | None = Field(None, description="name, name:version or name@alias")

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingsRequest(TextsRequest):
    """The body of `/v1/embeddings`."""

    encoding_format: Literal["float", "base64"] = Field("float", description="of the vectors")
    dimensions: StrictInt | None = Field(None, ge=1, description="only the first so many")


async def create_embeddings(http: Request, models: Models) -> Response:
    """Embed texts."""
    request = parse_body(EmbeddingsRequest, http.body)
    texts = check_texts(request.texts, models.limits, "input")
    embedded = await models.embed(request.model, texts)
    vectors = [resize_embedding(vector, True, request.dimensions) for vector in embedded.values]
    data = [
        {
            "object": "embedding",
            "embedding": _encode_vector(vector, request.encoding_format),
            "index": index,
        }
        for index, vector in enumerate(vectors)
    ]
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": embedded.model.name,
            "usage": token_usage(embedded.num_tokens),
        }
    )


def _encode_vector(vector: Vector, encoding: Literal["float", "base64"]) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers


def token_usage(num_tokens: Sequence[int]) -> dict[str, int]:
    """Return the number of computed tokens as `usage` has it."""
    total = sum(num_tokens)
    return {"prompt_tokens": total, "total_tokens": total}


async def list_models(_: Request, models: Models) -> Response:
    """List every model by its name, then every version by name:version.

    `models`, KServe's key, holds the bare names.
    """
    infos = models.list_models()
    names: dict[str, Any] = {}
    for info in infos:
        names.setdefault(info.name, describe_model(info, info.name))
    versions = [describe_model(info, f"{info.name}:{info.version}") for info in infos]
    data = [*names.values(), *versions]
    return json_response({"object": "list", "data": data, "models": [*names]})


def describe_model(info: ModelInfo, reference: str) -> dict[str, Any]:
    """Describe one model by a reference that it answers to."""
    return {"id": reference, "object": "model", "created": int(info.created), "owned_by": OWNER}


def error_body(error: HTTPError, status: int) -> bytes:
    """Return the JSON of an error."""
    default = "server_error" if status >= 500 else "invalid_request_error"
    body = {
        "message": error.message,
        "type": _ERROR_TYPES.get(status, default),
        "param": None,
        "code": error.kind.replace("-", "_"),
    }
    return dump_json({"error": body})


def _embeddings_route(path: str, summary: str) -> Route:
    body = json_schema(EmbeddingsRequest)
    return Route("POST", path, create_embeddings, summary, body_schema=body)


PROTOCOL = WireProtocol(
    "openai",
    (
        _embeddings_route("/v1/embeddings", "The vectors of texts"),
        _embeddings_route("/embeddings", "The vectors of texts, as the older address has it"),
        Route("GET", "/v1/models", list_models, "The models"),
    ),
    error_body,
    STATUSES,
)
