"""`/tokenize`, `/decode` and `/embed_all` of Text Embeddings Inference, `/detokenize` of vLLM."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.http.messages import HTTPError, Request, Response
from serving.interface import Models, Token
from serving.protocols.json_bodies import dump_json, json_response, parse_body
from serving.protocols.requests import add_prompt, check_texts, choose_model, requested_model
from serving.protocols.tei_bodies import TEIEmbedRequest
from serving.protocols.tokens.bodies import DecodeRequest, DetokenizeRequest, TokenizeRequest

FEW_NUMBERS = 50_000  # of vectors, written in the event loop: more would hold up other requests


async def tokenize(http: Request, models: Models) -> Response:
    """Return the tokens of texts before they are cut, in the shape of the original or of vLLM."""
    request = parse_body(TokenizeRequest, http.body)
    texts = check_texts(request.texts, models.limits, "inputs")
    model = choose_model(http, request.model)
    info = models.get_info(model)
    texts = add_prompt(texts, request.prompt_name, info)
    with_special = request.add_special_tokens is not False
    tokens = await models.tokenize(model, texts, add_special_tokens=with_special)
    if request.prompt is None:
        return json_response([[_format_token(token) for token in of_text] for of_text in tokens])
    (of_text,) = tokens
    answer = {
        "count": len(of_text),
        "max_model_len": info.max_length,
        "tokens": [token.id for token in of_text],
        "token_strs": [token.text for token in of_text],
    }
    return json_response(answer)


def _format_token(token: Token) -> dict[str, Any]:
    known = {"id": token.id, "text": token.text, "special": token.special}
    return known | {"start": token.start, "stop": token.end}


async def decode(http: Request, models: Models) -> Response:
    """Return the texts of token ids."""
    request = parse_body(DecodeRequest, http.body)
    texts = await models.detokenize(
        choose_model(http, request.model),
        request.read_rows(models.limits),
        skip_special_tokens=request.skip_special_tokens is not False,
    )
    return json_response(list(texts))


async def detokenize(http: Request, models: Models) -> Response:
    """Return the text of token ids, special ones included."""
    request = parse_body(DetokenizeRequest, http.body)
    if not request.tokens:
        raise HTTPError("empty", "tokens is empty; give at least one token id")
    model = choose_model(http, request.model)
    (text,) = await models.detokenize(model, [request.tokens], skip_special_tokens=False)
    return json_response({"prompt": text})


async def embed_tokens(http: Request, models: Models) -> Response:
    """Return the vectors of all tokens of each text, as the model makes them."""
    request = parse_body(TEIEmbedRequest, http.body)
    model = choose_model(http, request.model)
    texts = request.read_texts(models.limits, models.get_info(model))
    if request.dimensions:
        raise HTTPError("malformed", "dimensions: vectors of tokens have all of theirs; leave it")
    embedded = await models.embed_tokens(model, texts, truncate=request.truncate is not False)
    if sum(vectors.size for vectors in embedded.values) <= FEW_NUMBERS:
        return Response(_dump_vectors(embedded.values))
    return Response(await asyncio.to_thread(_dump_vectors, embedded.values))


def _dump_vectors(of_texts: Sequence[np.ndarray]) -> bytes:
    """Return JSON of arrays [tokens, width], token by token, so that other threads go on."""
    texts = (b",".join(dump_json(row.tolist()) for row in vectors) for vectors in of_texts)
    return b"[" + b",".join(b"[" + text + b"]" for text in texts) + b"]"


async def refuse_sparse(http: Request, models: Models) -> Response:
    """Say that there are no sparse vectors."""
    info = models.get_info(requested_model(http))
    raise HTTPError(
        "wrong-task",
        f"embed_sparse: no model here gives sparse vectors, {info.name} is for {info.task}; ask "
        "/embed of an embedder",
    )
