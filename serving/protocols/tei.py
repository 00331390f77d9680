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

from serving.http.messages import Kind, Protocol, Refusal, Reply, Request, Route
from serving.interface import Models, Prediction, Vector
from serving.protocols import tei_info
from serving.protocols.json_bodies import dump, parse, schema
from serving.protocols.labels import ranked
from serving.protocols.paths import model_of
from serving.protocols.similarity import cosines
from serving.protocols.tei_bodies import (
    EmbedRequest,
    PredictRequest,
    RerankRequest,
    SimilarityRequest,
    read,
)
from serving.protocols.texts import checked
from serving.protocols.vectors import shaped

_ERROR_TYPES: dict[Kind, str] = {
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


class LabelScore(BaseModel):
    """One label of an answer."""

    label: str = Field(description='the name of a class, or "value" for a regression')
    score: float = Field(description="a probability; a logit with raw_scores; a regression's value")


class Rank(BaseModel):
    """One text of an answer to `/rerank`."""

    index: int = Field(description="its place in `texts`, from 0")
    score: float = Field(description="the cosine of the query and it")
    text: str | None = Field(None, description="with return_text")


PredictResponse = Annotated[
    list[LabelScore] | list[list[LabelScore]],
    Field(description="labels by falling score; for a list of texts, a list of such lists"),
]


async def predict(http: Request, models: Models) -> Reply:
    """Labels by falling score."""
    request = read(http.body, models.limits)
    truncate = request.truncate is not False
    predicted = await models.predict(model_of(http), request.texts, truncate=truncate)
    return Reply(answer(request, predicted.values, predicted.model.labels))


def answer(
    request: PredictRequest, predictions: Sequence[Prediction], labels: Sequence[str]
) -> bytes:
    """The JSON that answers `request`, given one prediction a text and the names of the labels."""
    answers = [
        ranked(prediction.logits if request.raw_scores else prediction.scores, labels)
        for prediction in predictions
    ]
    return dump(answers[0] if request.single else answers)


async def embed(http: Request, models: Models) -> Reply:
    """Vectors, a list of them even for one text."""
    request = parse(EmbedRequest, http.body)
    texts = checked(request.texts, models.limits, "inputs")
    truncate = request.truncate is not False
    embedded = await models.embed(model_of(http), texts, truncate=truncate)
    return Reply(dump(vectors(request, embedded.values)))


def vectors(request: EmbedRequest, values: Sequence[Vector]) -> list[list[float]]:
    """The vectors as the request wants them."""
    normalize = request.normalize is not False
    return [shaped(vector, normalize, request.dimensions).tolist() for vector in values]


async def rerank(http: Request, models: Models) -> Reply:
    """The places of the texts, the nearest to the query first."""
    request = parse(RerankRequest, http.body)
    scores = await cosines(models, model_of(http), request.query, request.texts, request.truncate)
    return Reply(dump(ranks(request, scores)))


def ranks(request: RerankRequest, scores: Sequence[float]) -> list[dict[str, Any]]:
    """The texts by falling score."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    found: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in order]
    if request.return_text:
        for rank in found:
            rank["text"] = request.texts[rank["index"]]
    return found


async def similarity(http: Request, models: Models) -> Reply:
    """How near each sentence is to the source: cosines."""
    request = parse(SimilarityRequest, http.body)
    inputs, parameters = request.inputs, request.parameters
    truncate = parameters.truncate if parameters else None
    model = model_of(http)
    return Reply(
        dump(await cosines(models, model, inputs.source_sentence, inputs.sentences, truncate))
    )


async def health(_: Request, models: Models) -> Reply:
    """200 where the model answers."""
    if not await models.ready():
        raise Refusal("unready", "the model does not answer")
    return Reply()


async def info(http: Request, models: Models) -> Reply:
    """What is served."""
    return Reply(dump(tei_info.info(models.find(model_of(http)), models.limits)))


def word(refusal: Refusal, _: int) -> bytes:
    """The JSON of an error."""
    kind = _ERROR_TYPES.get(refusal.kind, "Validation")
    return dump({"error": refusal.message, "error_type": kind})


def _routes(prefix: str) -> tuple[Route, ...]:
    """The routes below a prefix."""
    return (
        Route(
            "POST",
            f"{prefix}/predict",
            predict,
            "Classify a text or a list of texts",
            body=schema(PredictRequest),
            answer=TypeAdapter(PredictResponse).json_schema(),
        ),
        Route(
            "POST",
            f"{prefix}/embed",
            embed,
            "The vectors of texts",
            body=schema(EmbedRequest),
            answer=TypeAdapter(list[list[float]]).json_schema(),
        ),
        Route(
            "POST",
            f"{prefix}/rerank",
            rerank,
            "Texts by their nearness to a query",
            body=schema(RerankRequest),
            answer=TypeAdapter(list[Rank]).json_schema(),
        ),
        Route(
            "POST",
            f"{prefix}/similarity",
            similarity,
            "How near texts are to a text",
            body=schema(SimilarityRequest),
            answer=TypeAdapter(list[float]).json_schema(),
        ),
        Route("GET", f"{prefix}/info", info, "The model, its labels, limits and held-out metrics"),
        Route("GET", f"{prefix}/health", health, "200 where the model answers", "open"),
    )


PROTOCOL = Protocol("tei", _routes("") + _routes("/tei/{model}"), word)
