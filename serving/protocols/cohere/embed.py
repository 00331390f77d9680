"""Cohere's `/v1/embed`, `/v2/embed`, `/v1/tokenize` and `/v1/detokenize`.

`input_type` is the prompt of that name, where the bundle has one.

    POST /v2/embed {"model": "mini", "texts": ["a"], "input_type": "search_query",
                    "embedding_types": ["float"]}
"""

import base64
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field, StrictInt, StrictStr

from serving.http.messages import HTTPError, Request, Response, Route, WireProtocol
from serving.interface import Models
from serving.protocols.embeddings import resize_embedding
from serving.protocols.json_bodies import (
    ClientList,
    JSONBody,
    TextList,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.openai import STATUSES, TokenIds
from serving.protocols.requests import (
    INPUT_TYPE,
    add_prompt,
    check_texts,
    find_prompt,
    read_as,
)
from serving.protocols.rerank import error_body

_MODEL = "name, name:version or name@alias"
_META = {"api_version": {"version": "2"}}


class CohereContent(JSONBody):
    """A part of an input: a text."""

    type: Literal["text"]
    text: StrictStr


class CohereInput(JSONBody):
    """An input of one part."""

    content: ClientList[CohereContent] = Field(min_length=1, max_length=1)


class CohereEmbedRequest(JSONBody):
    """The body of `/v1/embed` and `/v2/embed`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["A warm film."]}]})

    refused: ClassVar[dict[str, str]] = {"images": "models read texts alone"}
    meaningless: ClassVar[dict[str, str]] = {
        "priority": "small requests go first, then those that came first"
    }

    texts: TextList | None = Field(None, description="a list of texts")
    inputs: ClientList[CohereInput] | None = Field(
        None, description='a list of {"content": [{"type": "text", "text": text}]}'
    )
    model: StrictStr | None = Field(None, description=_MODEL)
    input_type: StrictStr | None = Field(None, description=INPUT_TYPE)
    embedding_types: ClientList[Literal["float", "base64"]] | None = Field(
        None, description='"float" (the default), "base64"'
    )
    output_dimension: StrictInt | None = Field(
        None, ge=0, description="only the first so many, 0: all of them"
    )
    truncate: Literal["NONE", "START", "END"] | None = Field(
        None, description="the end of a text that is too long which is cut; NONE refuses it"
    )
    max_tokens: StrictInt | None = Field(None, ge=1, description="read so many tokens at most")

    @property
    def all_texts(self) -> list[str]:
        """The texts, in order."""
        return [*(self.texts or ()), *(each.content[0].text for each in self.inputs or ())]


class CohereTokenizeRequest(JSONBody):
    """The body of `/v1/tokenize`."""

    text: StrictStr = Field(description="a text")
    model: StrictStr | None = Field(None, description=_MODEL)


class CohereDetokenizeRequest(JSONBody):
    """The body of `/v1/detokenize`."""

    tokens: TokenIds = Field(description="the token ids of a text")
    model: StrictStr | None = Field(None, description=_MODEL)


async def embed(http: Request, models: Models) -> Response:
    """Embed texts."""
    request = parse_body(CohereEmbedRequest, http.body)
    texts = check_texts(request.all_texts, models.limits, "texts")
    info = models.get_info(request.model or None)
    prompted = add_prompt(texts, find_prompt(request.input_type, info), info)
    side: Literal["left"] | None = "left" if request.truncate == "START" else None
    embedded = await models.embed(
        request.model or None,
        read_as(prompted, side, request.max_tokens),
        truncate=request.truncate != "NONE",
    )
    vectors = [resize_embedding(each, True, request.output_dimension) for each in embedded.values]
    by_type = {name: _encode(vectors, name) for name in request.embedding_types or ("float",)}
    # The first version answers with bare vectors unless it is asked for types.
    is_bare = http.path.startswith("/v1/") and request.embedding_types is None
    answer = {
        "id": uuid.uuid4().hex,
        "response_type": "embeddings_floats" if is_bare else "embeddings_by_type",
        "embeddings": by_type["float"] if is_bare else by_type,
        "texts": list(texts),
        "meta": _META | {"billed_units": {"input_tokens": sum(embedded.num_tokens)}},
    }
    return json_response(answer)


def _encode(vectors: Sequence[np.ndarray], name: str) -> list[Any]:
    if name == "float":
        return [vector.tolist() for vector in vectors]
    encoded = (base64.b64encode(np.asarray(vector, "<f4").tobytes()) for vector in vectors)
    return [each.decode("ascii") for each in encoded]


async def tokenize(http: Request, models: Models) -> Response:
    """Return the tokens of a text, none of them special."""
    request = parse_body(CohereTokenizeRequest, http.body)
    texts = check_texts([request.text], models.limits, "text")
    (tokens,) = await models.tokenize(request.model or None, texts, add_special_tokens=False)
    answer = {
        "tokens": [token.id for token in tokens],
        "token_strings": [token.text for token in tokens],
        "meta": _META,
    }
    return json_response(answer)


async def detokenize(http: Request, models: Models) -> Response:
    """Return the text of tokens."""
    request = parse_body(CohereDetokenizeRequest, http.body)
    if not request.tokens:
        raise HTTPError("empty", "tokens is empty; give at least one token id")
    (text,) = await models.detokenize(request.model or None, [request.tokens])
    return json_response({"text": text, "meta": _META})


_EMBED, _TOKENS = json_schema(CohereEmbedRequest), json_schema(CohereTokenizeRequest)

PROTOCOL = WireProtocol(
    "cohere",
    (
        Route("POST", "/v1/embed", embed, "The vectors of texts", body_schema=_EMBED),
        Route("POST", "/v2/embed", embed, "The vectors of texts", body_schema=_EMBED),
        Route("POST", "/v1/tokenize", tokenize, "The tokens of a text", body_schema=_TOKENS),
        Route(
            "POST",
            "/v1/detokenize",
            detokenize,
            "The text of tokens",
            body_schema=json_schema(CohereDetokenizeRequest),
        ),
    ),
    error_body,
    STATUSES,
)
