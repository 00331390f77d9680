"""What protocols may ask: models by name, their answers and what is known of them.

The border between the wire and the models. Knows neither; both sides import it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

T = TypeVar("T", covariant=True)

Vector = np.ndarray  # float32 [width], of length 1 where the bundle says so


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer of a classifier or a regression to one text.

    scores: a probability for each label in the order of the card (softmax, or the sigmoid of each
    for multi-label), or the one number of a regression. logits: what the model computed, raw.
    """

    scores: tuple[float, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """One token that a masked language model puts in the place of a mask.

    sequence: the text with the token in it.
    """

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True, slots=True)
class Attribution:
    """How much a piece of a text spoke for a label.

    start, end: the place in the text that was given, in characters. weight: signed; the weights of
    a text add up to the difference that the text makes to the label's logit, to the error of the
    method.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text got a label."""

    label: int
    prediction: Prediction
    attributions: tuple[Attribution, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of one version of a model.

    task: "classification", "multi-label", "regression", "masked-lm" or "embedding". width: of an
    embedding, else 0. engine: the backend that answers, as "onnxruntime int8". metrics: measured on
    held-out texts. created: seconds since 1970. state: "ready", "loading" or "cold" (loaded when
    first asked). pooling: of an embedding, "mean" or "cls", where it is known. batch_tokens: that
    the engine computes at once.
    """

    name: str
    version: str
    task: str
    labels: tuple[str, ...]
    max_length: int
    engine: str
    base_model: str
    metrics: Mapping[str, Any]
    revision: str | None
    weights_sha256: str | None
    created: float
    width: int = 0
    aliases: tuple[str, ...] = ()
    state: str = "ready"
    pooling: str = ""
    batch_tokens: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, or the one name of a regression's value."""
        return self.labels or ("value",)


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """The answers to the texts of one request, in order, by one version of a model.

    num_tokens: of each text as it was computed, special tokens included.
    """

    model: ModelInfo
    values: Sequence[T]
    num_tokens: Sequence[int]


@dataclass(slots=True)
class Statistics:
    """What one version of a model has done since this replica loaded it.

    num_executions: batches. seconds: in all, of those that were answered (queue and compute).
    last_inference: seconds since 1970, or 0.
    """

    num_texts: int = 0
    num_executions: int = 0
    num_answered: int = 0
    num_failed: int = 0
    seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    last_inference: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, and all of them together, may ask of a replica.

    max_texts: of a request. max_waiting_requests, max_waiting_tokens: beyond either, a request is
    refused at once, so that those accepted are answered soon. max_body_bytes: of a request,
    decompressed.
    """

    max_texts: int = 32
    max_waiting_requests: int = 24
    max_waiting_tokens: int = 32768
    max_body_bytes: int = 2 * 1024 * 1024


class Management(Protocol):
    """Changes to what an endpoint serves. Every call raises `wire.Refusal` and nothing else."""

    async def register(self, url: str, name: str | None) -> ModelInfo:
        """Add the bundle in a directory as the next version of a name; by default its own."""

    async def set_default(self, name: str, version: str) -> None:
        """Make a version the one that answers for the bare name."""

    async def unregister(self, name: str, version: str | None) -> None:
        """Take away a version, or the live one; refused where others depend on it."""

    async def load(self, model: str) -> None:
        """Have a model in memory before anybody asks it."""

    async def unload(self, model: str) -> None:
        """Give its memory back; it loads again when it is asked."""


class Models(Protocol):
    """The models of an endpoint.

    model: "sentiment", "sentiment:3", "sentiment@best", or None for the default one. Every call
    raises `wire.Refusal` and nothing else: no-model, wrong-task, too-large, too-long, empty,
    unreadable, overloaded, late, failed, unready.
    """

    limits: Limits

    @property
    def management(self) -> Management | None:
        """What changes the models; None where one bundle is served, and nothing can be changed."""

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> Answer[Prediction]:
        """Labels or numbers: classification, multi-label and regression."""

    async def embed(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> Answer[Vector]:
        """Vectors: embedding."""

    async def fill(
        self,
        model: str | None,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> Answer[tuple[tuple[Filling, ...], ...]]:
        """For each text, for each of its masks, the likeliest tokens: masked-lm."""

    async def explain(
        self, model: str | None, texts: Sequence[str], *, label: str | None = None
    ) -> Answer[Explanation]:
        """Which words spoke for a label, by default the likeliest: classification, multi-label."""

    def find(self, model: str | None) -> ModelInfo:
        """What is known of a model; does not load it."""

    def all(self) -> Sequence[ModelInfo]:
        """Every version of every model, the default model's live version first."""

    def statistics(self, model: str | None) -> Statistics:
        """Of one version."""

    async def ready(self) -> bool:
        """Whether the default model has answered a text, and still would."""
