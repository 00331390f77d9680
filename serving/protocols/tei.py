"""Text Embeddings Inference: `/predict`, `/embed`, `/rerank`, `/similarity`, `/info`, `/health`.

Its clients know no names of models: they ask the default one or, given `/tei/NAME` as the address
of the server, that one. Four differences from the original, all on purpose:

- a flat list `["a", "b"]` is a batch of two texts unless `"pairs": true` says that it is one pair;
- long texts are cut unless `"truncate": false`, because evaluation cut them too;
- `/rerank` is answered by embedding models: its score is the cosine of query and text;
- `"normalize": false` gives vectors as the model makes them, which may be of length 1 already.

`/tokenize`, `/embed_all` and `/embed_sparse` are not offered.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from serving.http.messages import (
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
from serving.protocols.json_bodies import dump_json, json_response, json_schema, parse_body
from serving.protocols.labels import rank_answer
from serving.protocols.requests import check_texts, requested_model
from serving.protocols.tei_bodies import (
    TEIEmbedRequest,
    TEIPredictRequest,
    TEIRerankRequest,
    TEISimilarityRequest,
    parse_predict_request,
)

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
    predicted = await models.predict(requested_model(http), request.texts, truncate=truncate)
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
    texts = check_texts(request.texts, models.limits, "inputs")
    truncate = request.truncate is not False
    embedded = await models.embed(requested_model(http), texts, truncate=truncate)
    return json_response(format_embeddings(embedded.values, request.normalize, request.dimensions))


async def rerank(http: Request, models: Models) -> Response:
    """Rank texts by their similarity to the query."""
    request = parse_body(TEIRerankRequest, http.body)
    scores = await similarity_scores(
        models, requested_model(http), request.query, request.texts, request.truncate
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
    inputs, parameters = request.inputs, request.parameters
    scores = await similarity_scores(
        models,
        requested_model(http),
        inputs.source_sentence,
        inputs.sentences,
        parameters.truncate if parameters else None,
    )
    return json_response(scores)


async def check_health(_: Request, models: Models) -> Response:
    """Answer 200 if the default model answers."""
    if not await models.is_ready():
        raise HTTPError("unready", "the model does not answer")
    return Response()


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
            "max_concurrent_requests": None,
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
            "base_model": model.base_model,
            "model_version": model.version,
            "engine": model.engine,
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
    )


PROTOCOL = WireProtocol("tei", _make_routes("") + _make_routes("/tei/{model}"), error_body)
