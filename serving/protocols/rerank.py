"""Reranking as Cohere, Jina, infinity and vLLM have it, and vLLM's score of pairs.

`/rerank`, `/v1/rerank` and `/v2/rerank` read `documents`; at `/rerank` a body with `texts` is Text
Embeddings Inference's. Models are embedders, so a score is the cosine of query and document.

    POST /v2/rerank {"model": "mini", "query": "a", "documents": ["b", "c"], "top_n": 1}
"""

import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr

from serving.http.messages import HTTPError, Request, Response, Route, WireProtocol
from serving.interface import Models
from serving.protocols.embeddings import compare_texts, cosine_similarity
from serving.protocols.json_bodies import (
    ClientList,
    JSONBody,
    TextList,
    dump_json,
    json_response,
    json_schema,
    parse_body,
)
from serving.protocols.openai import PREFIXES, STATUSES, ModelRequest, token_usage
from serving.protocols.requests import check_texts, read_as
from serving.protocols.vllm import ERROR_TYPES

_NO_PARTS = "documents are compared whole; cut them before, or give `truncate_prompt_tokens`"


class RerankDocument(JSONBody):
    """A document in an object."""

    text: StrictStr


class RerankRequest(ModelRequest):
    """The body of a rerank with `documents`."""

    meaningless: ClassVar[dict[str, str]] = ModelRequest.meaningless | {
        "raw_scores": "the score is a cosine either way",
        "use_activation": "the score is a cosine either way",
        "activation": "the score is a cosine either way",
        "return_embeddings": "false is what is answered",
    }
    refused: ClassVar[dict[str, str]] = ModelRequest.refused | {
        "max_chunks_per_doc": _NO_PARTS,
        "overlap_tokens": _NO_PARTS,
        "rank_fields": "documents have one field, `text`; give texts",
        "return_query": "the client has the query",
        "relevant_spans": "documents are compared whole; no part of them has a score of its own",
    }

    query: StrictStr = Field(description="the text that documents are compared with")
    documents: ClientList[StrictStr | RerankDocument] = Field(
        description='a list of texts, or of {"text": text}'
    )
    top_n: StrictInt | None = Field(None, ge=0, description="only the best so many; 0: all of them")
    top_k: StrictInt | None = Field(None, ge=0, description="Voyage: another name for top_n")
    return_documents: StrictBool | None = Field(None, description="put the texts into the answer")
    max_tokens_per_doc: StrictInt | None = Field(
        None, ge=1, description="Cohere: read so many tokens of each at most"
    )
    truncation: StrictBool | None = Field(
        None, description="cut texts that are too long (the default), or refuse them (false)"
    )

    @property
    def texts(self) -> list[str]:
        """The documents, in order."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


class ScoreRequest(ModelRequest):
    """The body of `/score`: one text and others, or as many of each."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text_1": "A warm film.", "text_2": ["A dull film."]}]}
    )

    meaningless: ClassVar[dict[str, str]] = ModelRequest.meaningless | {
        "raw_scores": "the score is a cosine either way",
        "use_activation": "the score is a cosine either way",
        "activation": "the score is a cosine either way",
    }

    text_1: StrictStr | TextList | None = Field(None, description="a text, or a list of texts")
    text_2: StrictStr | TextList | None = Field(None, description="a text, or a list of texts")
    queries: StrictStr | TextList | None = Field(None, description="another name for text_1")
    documents: StrictStr | TextList | None = Field(None, description="another name for text_2")

    def pair_texts(self) -> tuple[list[str], list[str]]:
        """Return the texts of both sides, as many of each. Raises HTTPError."""
        first, second = (
            [side] if isinstance(side, str) else side or []
            for side in (self.text_1 or self.queries, self.text_2 or self.documents)
        )
        if not first or not second:
            raise HTTPError("malformed", "text_1 and text_2 are missing; give a text and others")
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise HTTPError(
                "malformed",
                f"{len(first)} and {len(second)} texts: give one text_1, or as many of each",
            )
        return first, second


async def rerank(http: Request, models: Models) -> Response:
    """Rank documents by their similarity to the query."""
    return await rerank_documents(parse_body(RerankRequest, http.body), http, models)


async def rerank_documents(request: RerankRequest, http: Request, models: Models) -> Response:
    """Answer in a shape that clients of all four read."""
    asked = [each for each in (request.max_tokens, request.max_tokens_per_doc) if each]
    compared = await compare_texts(
        models,
        request.choose_model(http),
        request.query,
        request.texts,
        request.truncation,
        request.truncation_side,
        min(asked, default=None),
    )
    scores = compared.scores
    top_n = request.top_n or request.top_k or None
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": scores[index]} for index in order
    ]
    if request.return_documents:
        is_infinity = http.path.startswith("/infinity")
        for result in results:
            text = request.texts[result["index"]]
            result["document"] = text if is_infinity else {"text": text}
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "object": "rerank",
        "created": int(time.time()),
        "model": compared.model.name,
        "results": results,
        "usage": token_usage(compared.num_tokens),
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }
    if "top_k" in request.model_fields_set:  # as Voyage's clients send it, whatever its value
        answer["data"] = results
    return json_response(answer)


async def score(http: Request, models: Models) -> Response:
    """Return the similarity of each pair."""
    request = parse_body(ScoreRequest, http.body)
    first, second = request.pair_texts()
    check_texts(first, models.limits, "text_1")
    check_texts(second, models.limits, "text_2")
    # One request, so that one version of the model embeds both sides; each text once.
    places: dict[str, int] = {}
    for text in (*first, *second):
        places.setdefault(text, len(places))
    texts = read_as([*places], request.truncation_side, request.max_tokens)
    embedded = await models.embed(request.choose_model(http), texts)
    vectors = embedded.values
    data = [
        {
            "index": index,
            "object": "score",
            "score": cosine_similarity(vectors[places[one]], vectors[places[other]]),
        }
        for index, (one, other) in enumerate(zip(first, second, strict=True))
    ]
    answer = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": embedded.model.name,
        "data": data,
        "usage": token_usage(embedded.num_tokens),
    }
    return json_response(answer)


def error_body(error: HTTPError, status: int) -> bytes:
    """Return the JSON of an error: `message` for Cohere, `detail` for Jina, `error` for vLLM."""
    default = "InternalServerError" if status >= 500 else "BadRequestError"
    described: Mapping[str, Any] = {
        "message": error.message,
        "type": ERROR_TYPES.get(status, default),
        "param": None,
        "code": status,
    }
    return dump_json({"message": error.message, "detail": error.message, "error": described})


def _rerank_route(path: str) -> Route:
    body = json_schema(RerankRequest)
    return Route("POST", path, rerank, "Documents by their nearness to a query", body_schema=body)


def _score_route(path: str) -> Route:
    body = json_schema(ScoreRequest)
    return Route("POST", path, score, "How near two texts are", body_schema=body)


PROTOCOL = WireProtocol(
    "rerank",
    (
        *(
            _rerank_route(f"{prefix}{version}/rerank")
            for prefix in PREFIXES
            # Without a version, the path is shared with Text Embeddings Inference there.
            for version in (
                ("/v1", "/v2") if prefix in ("", "/tei/{model}") else ("", "/v1", "/v2")
            )
        ),
        *(
            _score_route(f"{prefix}{version}/score")
            for prefix in PREFIXES
            for version in ("", "/v1")
        ),
    ),
    error_body,
    STATUSES,
)
