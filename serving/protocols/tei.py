"""Text Embeddings Inference's `/predict` and `/info`, translated; nothing is computed here.

Bytes of a request become texts, predictions become the bytes of a response. Knows no HTTP server
and no model. Two differences from the original, both on purpose: a flat list `["a", "b"]` is a
batch of two texts unless `"pairs": true` says that it is one pair; and long texts are cut unless
`"truncate": false`, because evaluation cut them too.

    request = tei.parse(b'{"inputs": "A warm, funny film."}', max_batch=32)
    tei.answer(request, engine.predict(request.texts), ("negative", "positive"))
"""

import json
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from serving.engine import Prediction
from trainers.card import Card

ErrorType = Literal["Validation", "Empty", "Tokenizer", "Backend", "Overloaded", "Unhealthy"]
VALUE = "value"  # what stands for a label where a model answers one number

_SHAPES = "a text, a list of texts, or a list of lists of one text"


class Refused(Exception):
    """A request that gets an error for an answer: HTTP status and the original's error type."""

    def __init__(self, status: int, error_type: ErrorType, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.error_type = error_type


class PredictRequest(BaseModel):
    """The body of a request. Keys that are not listed are ignored, as the original does."""

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {"inputs": "A warm, funny and beautifully acted film."},
                {"inputs": ["A warm, funny film.", "Two hours I will never get back."]},
            ]
        },
    )

    inputs: StrictStr | list[StrictStr] | list[list[StrictStr]] = Field(description=_SHAPES)
    raw_scores: StrictBool = Field(False, description="logits instead of probabilities")
    truncate: StrictBool | None = Field(
        None, description="cut texts that are too long (the default), or refuse them (false)"
    )
    truncation_direction: Literal["Right"] = Field("Right", description="the end that is cut")
    pairs: StrictBool = Field(
        False, description="read `inputs` of two texts as one pair; this server has no such model"
    )

    @property
    def single(self) -> bool:
        """Whether one text was asked about, so that the answer is not a list of answers."""
        return isinstance(self.inputs, str)

    @property
    def texts(self) -> list[str]:
        """The texts in order."""
        if isinstance(self.inputs, str):
            return [self.inputs]
        return [text if isinstance(text, str) else text[0] for text in self.inputs]


class LabelScore(BaseModel):
    """One label of an answer."""

    label: str = Field(description='the name of a class, or "value" for a regression')
    score: float = Field(description="a probability; a logit with raw_scores; a regression's value")


PredictResponse = Annotated[
    list[LabelScore] | list[list[LabelScore]],
    Field(description="labels by falling score; for a list of texts, a list of such lists"),
]


class Info(BaseModel):
    """What is served."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None = Field(description="SHA-256 of the weights")
    model_dtype: str = "float32"
    model_type: dict[str, Any]
    max_concurrent_requests: int | None = None
    max_input_length: int = Field(description="tokens of a text; longer texts are cut")
    max_batch_tokens: int = Field(description="tokens computed at once, padding included")
    max_batch_requests: int | None = None
    max_client_batch_size: int = Field(description="texts of a request")
    auto_truncate: bool = True
    tokenization_workers: int = 1
    version: str
    sha: str | None = Field(description="code revision that trained the model")
    docker_label: str | None = None
    task: str = Field(description="classification, multi-label or regression")
    labels: list[str]
    metrics: dict[str, Any] = Field(description="measured on held-out texts")
    base_model: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: str = Field(description="what is wrong, and the way out")
    error_type: str = Field(description="Validation, Empty, Tokenizer, Backend, Overloaded, ...")


def parse(body: bytes, max_batch: int) -> PredictRequest:
    """The request in `body`, of at most `max_batch` texts. Raises Refused, and nothing else."""
    try:
        request = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    _refuse_pairs(request)
    if not request.inputs:
        raise Refused(400, "Empty", "inputs is empty; give at least one text")
    if len(request.texts) > max_batch:
        raise Refused(
            413,
            "Validation",
            f"{len(request.texts)} texts, but a request holds at most {max_batch}; send several",
        )
    for number, text in enumerate(request.texts, 1):
        if not text.strip():
            raise Refused(400, "Empty", f"text {number} of inputs is empty")
    return request


def answer(
    request: PredictRequest, predictions: Sequence[Prediction], labels: Sequence[str]
) -> bytes:
    """The JSON that answers `request`, given one prediction a text and the names of the labels."""
    answers = [
        ranked(prediction.logits if request.raw_scores else prediction.scores, labels)
        for prediction in predictions
    ]
    return json.dumps(answers[0] if request.single else answers, ensure_ascii=False).encode()


def ranked(scores: Sequence[float], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Labels with their scores, the highest first."""
    pairs = zip(scores, labels or (VALUE,), strict=True)
    return [{"score": score, "label": label} for score, label in sorted(pairs, key=lambda p: -p[0])]


def error(message: str, error_type: str) -> bytes:
    """The JSON of an error."""
    return json.dumps({"error": message, "error_type": error_type}, ensure_ascii=False).encode()


def info(name: str, card: Card, max_batch_tokens: int, max_client_batch_size: int) -> Info:
    """What `/info` answers for the bundle `name`; the keys below `task` are ours."""
    names = card.labels or (VALUE,)
    classifier = {
        "id2label": {str(index): label for index, label in enumerate(names)},
        "label2id": {label: index for index, label in enumerate(names)},
    }
    return Info(
        model_id=name,
        model_sha=card.files.get("model.safetensors"),
        model_type={"classifier": classifier},
        max_input_length=card.max_length,
        max_batch_tokens=max_batch_tokens,
        max_client_batch_size=max_client_batch_size,
        version=version(),
        sha=card.revision,
        task=card.task,
        labels=list(card.labels),
        metrics=dict(card.metrics),
        base_model=str(card.recipe.get("model", {}).get("name", "")),
    )


def version() -> str:
    """Bertha's version."""
    try:
        return metadata.version("bertha")
    except metadata.PackageNotFoundError:  # run from a folder of sources
        return "0"


def _refuse_pairs(request: PredictRequest) -> None:
    """The encoder reads single texts, so a pair is refused; so is a list that holds no text."""
    for number, text in enumerate(request.inputs, 1):
        if isinstance(text, list) and len(text) != 1:
            what = "a pair" if len(text) == 2 else f"a list of {len(text)}"
            raise Refused(
                422,
                "Validation",
                f"inputs holds {what} at place {number}, but this model reads single texts; "
                f"inputs is {_SHAPES}",
            )
    if request.pairs:
        raise Refused(
            422,
            "Validation",
            "pairs = true: this model reads single texts, no pairs; leave `pairs` out to have a "
            "list of texts read as a batch",
        )


def _explain(error: ValidationError) -> Refused:
    """One sentence for the first mistake in a body."""
    detail = error.errors(include_url=False, include_context=False)[0]
    if detail["type"] == "json_invalid":
        reason = detail["msg"].removeprefix("Invalid JSON: ")
        return Refused(400, "Validation", f"the body is not JSON in UTF-8: {reason}")
    if not detail["loc"]:
        return Refused(422, "Validation", 'the body is no JSON object; send {"inputs": "a text"}')
    key = str(detail["loc"][0])
    if detail["type"] == "missing":
        return Refused(422, "Validation", f"{key} is missing; it is {_SHAPES}")
    if key == "inputs":
        return Refused(422, "Validation", f"inputs is none of these: {_SHAPES}")
    message = detail["msg"]
    return Refused(422, "Validation", f"{key}: {message[0].lower()}{message[1:]}")
