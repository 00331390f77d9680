"""Text Embeddings Inference: `/predict`, `/embed`, `/rerank`, `/similarity`, `/info`, `/health`.

Its clients know no names of models: they ask the default one or, given `/tei/NAME` as the address
of the server, that one. Five differences from the original, all on purpose:

- a flat list `["a", "b"]` is a batch of two texts unless `"pairs": true` says that it is one pair;
- long texts are cut unless `"truncate": false`, because evaluation cut them too;
- `/rerank` is answered by embedding models: its score is the cosine of query and text;
- `"normalize": false` gives vectors as the model makes them, which may be of length 1 already;
- a body may name a `model`.

`/embed_all` is computed as explanations are: apart from the batches, in fp32, a request at a time.
`/embed_sparse` says that there are no such models here. vLLM's `/detokenize` stands here, too.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from serving.http.messages import (
    JSON,
    ErrorKind,
    Handler,
    HTTPError,
    Request,
    Response,
    Route,
    WireProtocol,
    bertha_version,
)
from serving.interface import ModelInfo, Models, Prediction
from serving.protocols.embeddings import format_embeddings, similarity_scores
from serving.protocols.json_bodies import (
    dump_json,
    json_response,
    json_schema,
    parse_body,
    parse_json,
)
from serving.protocols.labels import rank_answer
from serving.protocols.requests import add_prompt, choose_model, read_as, requested_model
from serving.protocols.rerank import RerankRequest, rerank_documents
from serving.protocols.tei_bodies import (
    SimilarityParameters,
    TEIEmbedRequest,
    TEIPredictRequest,
    TEIRerankRequest,
    TEISimilarityRequest,
    parse_predict_request,
    validate_rerank_request,
)
from serving.protocols.tokens import calls
from serving.protocols.tokens.bodies import DecodeRequest, DetokenizeRequest, TokenizeRequest

_ERROR_TYPES: dict[ErrorKind, str] = {
    "empty": "Empty",
    "unauthorized": "Unauthorized",
    "forbidden": "Unauthorized",
    "wrong-task": "Backend",
    "failed": "Backend",
    "unreadable": "Tokenizer",
    "overloaded": "Overloaded",
    "late": "Overloaded",
    "unready": "Unhealthy",
    "internal": "Internal",
}  # all else is Validation
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class LabelScore(BaseModel):
    """One label of an answer."""

    label: str = Field(description='the name of a class, or "value" for a regression')
    score: float = Field(description="a probability; a logit with raw_scores; a regression's value")


class RerankResult(BaseModel):
    """One text of an answer to `/rerank`."""

    index: int = Field(description="its place in `texts`, from 0")
    score: float = Field(description="the cosine of the query and it")
    text: str | None = Field(None, description="with return_text")


PredictResponse = Annotated[
    list[LabelScore] | list[list[LabelScore]],
    Field(
        description="labels by falling score, the answer first where a threshold decides it; for a "
        "list of texts, a list of such lists"
    ),
]


async def predict(http: Request, models: Models) -> Response:
    """Return the labels of each text: the answer first, each part by falling score."""
    request = parse_predict_request(http.body, models.limits)
    truncate = request.truncate is not False
    texts = read_as(request.texts, request.side)
    predicted = await models.predict(choose_model(http, request.model), texts, truncate=truncate)
    return Response(format_predictions(request, predicted.values, predicted.model))


def format_predictions(
    request: TEIPredictRequest, predictions: Sequence[Prediction], model: ModelInfo
) -> bytes:
    """Return the JSON that answers `request`, given one prediction a text."""
    answers = [
        rank_answer(prediction, model, prediction.logits if request.raw_scores else None)
        for prediction in predictions
    ]
    return dump_json(answers[0] if request.is_single else answers)


async def embed(http: Request, models: Models) -> Response:
    """Return the vectors of texts, a list of them even for one text."""
    request = parse_body(TEIEmbedRequest, http.body)
    model, truncate = choose_model(http, request.model), request.truncate is not False
    texts = request.read_texts(models.limits, models.get_info(model))
    embedded = await models.embed(model, texts, truncate=truncate)
    return json_response(format_embeddings(embedded.values, request.normalize, request.dimensions))


async def rerank(http: Request, models: Models) -> Response:
    """Rank texts, or documents as Cohere has them, by their similarity to the query."""
    request = validate_rerank_request(parse_json(http.body))
    if isinstance(request, RerankRequest):
        return await rerank_documents(request, http, models)
    scores = await similarity_scores(
        models,
        choose_model(http, request.model),
        request.query,
        request.texts,
        request.truncate,
        request.side,
    )
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in order]
    if request.return_text:
        for result in results:
            result["text"] = request.texts[result["index"]]
    return json_response(results)


async def score_similarity(http: Request, models: Models) -> Response:
    """Return the cosine similarity of each sentence to the source."""
    request = parse_body(TEISimilarityRequest, http.body)
    parameters, inputs = request.parameters or SimilarityParameters(), request.inputs
    model = choose_model(http, request.model)
    texts = [inputs.source_sentence, *inputs.sentences]
    text, *others = add_prompt(texts, parameters.prompt_name, models.get_info(model))
    scores = await similarity_scores(
        models, model, text, others, parameters.truncate, parameters.side
    )
    return json_response(scores)


async def answer_root(http: Request, models: Models) -> Response:
    """Answer as `/predict`, or as `/embed` where the model is an embedder."""
    named = parse_json(http.body)
    given = named.get("model") if isinstance(named, dict) else None
    model = choose_model(http, given if isinstance(given, str) else None)
    is_embedder = models.get_info(model).task == "embedding"
    return await (embed if is_embedder else predict)(http, models)


async def check_health(http: Request, models: Models) -> Response:
    """Answer 200 if the default model answers; with JSON below /infinity, and where it is asked."""
    if not await models.is_ready():
        raise HTTPError("unready", "the model does not answer")
    wants_json = JSON in http.headers.get("accept", "") or http.path.startswith("/infinity")
    return json_response({"status": "ready", "unix": time.time()}) if wants_json else Response()


async def get_info(http: Request, models: Models) -> Response:
    """Describe the model; the keys after docker_label are ours."""
    model = models.get_info(requested_model(http))
    precision = model.engine.rpartition(" ")[2]
    return json_response(
        {
            "model_id": model.name,
            "model_sha": model.weights_sha256,
            "model_dtype": _DTYPES.get(precision, precision),
            "model_type": _model_type(model),
            "max_concurrent_requests": models.limits.max_waiting_requests,
            "max_input_length": model.max_length,
            "max_batch_tokens": model.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": models.limits.max_texts,
            "auto_truncate": True,
            "tokenization_workers": 1,
            "version": bertha_version(),
            "sha": model.revision,
            "docker_label": None,
            "task": model.task,
            "labels": list(model.labels),
            "aliases": list(model.aliases),
            "metrics": dict(model.metrics),
            "thresholds": dict(model.thresholds),
            "verdict": dict(model.verdict),
            "target": dict(model.target),
            "examples": list(model.examples),
            "prompts": dict(model.prompts),
            "base_model": model.base_model,
            "model_version": model.version,
            "engine": model.engine,
            "max_body_bytes": models.limits.max_body_bytes,
            "max_wait_seconds": models.limits.max_wait_seconds,
        }
    )


def _model_type(model: ModelInfo) -> dict[str, Any]:
    if model.task == "embedding":
        return {"embedding": {"pooling": model.pooling or "mean"}}
    if model.task == "masked-lm":
        return {"masked-lm": {}}  # the original serves none
    names = model.output_names
    return {
        "classifier": {
            "id2label": {str(index): label for index, label in enumerate(names)},
            "label2id": {label: index for index, label in enumerate(names)},
        }
    }


def error_body(error: HTTPError, _: int) -> bytes:
    """Return the JSON of an error."""
    kind = _ERROR_TYPES.get(error.kind, "Validation")
    return dump_json({"error": error.message, "error_type": kind})


def _make_routes(prefix: str) -> tuple[Route, ...]:
    """Return the routes below a prefix."""

    def post(
        name: str, handler: Handler, summary: str, body: type[BaseModel], response: Any
    ) -> Route:
        answer = TypeAdapter(response).json_schema()
        path, schema = f"{prefix}/{name}", json_schema(body)
        return Route("POST", path, handler, summary, body_schema=schema, response_schema=answer)

    return (
        post(
            "predict",
            predict,
            "Classify a text or a list of texts",
            TEIPredictRequest,
            PredictResponse,
        ),
        post("embed", embed, "The vectors of texts", TEIEmbedRequest, list[list[float]]),
        post(
            "rerank",
            rerank,
            "Texts by their nearness to a query",
            TEIRerankRequest,
            list[RerankResult],
        ),
        post(
            "similarity",
            score_similarity,
            "How near texts are to a text",
            TEISimilarityRequest,
            list[float],
        ),
        Route(
            "GET", f"{prefix}/info", get_info, "The model, its labels, limits and held-out metrics"
        ),
        Route("GET", f"{prefix}/health", check_health, "200 where the model answers", "open"),
        post(
            "tokenize",
            calls.tokenize,
            "The tokens of texts",
            TokenizeRequest,
            list[list[dict[str, Any]]],
        ),
        post("decode", calls.decode, "The texts of tokens", DecodeRequest, list[str]),
        post(
            "embed_all",
            calls.embed_tokens,
            "The vectors of the tokens of texts",
            TEIEmbedRequest,
            list[list[list[float]]],
        ),
        post("embed_sparse", calls.refuse_sparse, "Not offered", TEIEmbedRequest, dict[str, str]),
    )


def _root_routes(prefix: str) -> tuple[Route, ...]:
    """Return what the original answers at the address of the server itself, below a prefix."""
    schema = json_schema(TEIPredictRequest)
    return (
        Route("POST", prefix, answer_root, "As /predict, or /embed", body_schema=schema),
        Route(
            "POST",
            f"{prefix}/invocations",
            answer_root,
            "As /predict, or /embed",
            body_schema=schema,
        ),
        Route("GET", prefix, check_health, "200 where the model answers", "open"),
        Route("GET", f"{prefix}/ping", check_health, "200 where the model answers", "open"),
    )


_OF_MODEL = "/tei/{model}"

PROTOCOL = WireProtocol(
    "tei",
    (
        *_make_routes(""),
        *_make_routes(_OF_MODEL),
        *_root_routes(_OF_MODEL),
        Route(
            "POST",
            "/detokenize",
            calls.detokenize,
            "The text of tokens",
            body_schema=json_schema(DetokenizeRequest),
        ),
        Route("GET", "/infinity", check_health, "200 where the model answers", "open"),
        Route("GET", "/infinity/health", check_health, "200 where the model answers", "open"),
        Route("GET", "/infinity/{model}/health", check_health, "200 where it answers", "open"),
    ),
    error_body,
)
