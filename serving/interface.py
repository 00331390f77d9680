"""What wire protocols may call: models by name, their predictions and what is known of them.

The interface between the protocols and the models; both import it, and it imports neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from pydantic import Field

from cluster.settings import Settings
from trainers.models.profile import RowProfile

T = TypeVar("T", covariant=True)

Vector = np.ndarray  # float32 [width], of length 1 where the bundle says so

SERVED_DEVICES = ("cpu", "cuda", "xpu", "mps")  # kinds that there are engines for
PROMISED_WAIT_SECONDS = 0.1  # for an engine: replicas are added by it, and overload is held to it
DEFAULT_WAITING_REQUESTS, DEFAULT_WAITING_TOKENS = 24, 32768  # of an engine of unknown speed
SHORT_REQUEST_TOKENS = 32  # of the smallest requests, which are counted by their number


TruncationSide = Literal["left", "right"]


class TextInput(str):
    """A text with what its request says of how it is read; engines look for it.

    ids: token ids that are read as they are; the text is then these numbers. max_tokens: as many
    are read at most, special ones included; None: what the model reads. truncation_side: the end
    that is cut; None: the tokenizer's. Two that are equal as texts may be read differently.
    """

    __slots__ = ("ids", "max_tokens", "truncation_side")

    ids: tuple[int, ...]
    max_tokens: int | None
    truncation_side: TruncationSide | None

    def __new__(
        cls,
        text: str = "",
        ids: Sequence[int] = (),
        max_tokens: int | None = None,
        truncation_side: TruncationSide | None = None,
    ) -> "TextInput":
        """Make an input of a text, or of token ids."""
        made = super().__new__(cls, text or " ".join(map(str, ids)))
        made.ids, made.max_tokens, made.truncation_side = tuple(ids), max_tokens, truncation_side
        return made


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text. start, end: characters of the original; None of a special token."""

    id: int
    text: str
    special: bool
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The output of a classifier or a regression for one text.

    scores: a probability for each label in the order of the card (softmax, or sigmoid for
    multi-label), or the one value of a regression. logits: the raw output.
    """

    scores: tuple[float, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MaskPrediction:
    """One token that a masked language model predicts for a mask.

    sequence: the text with the token filled in.
    """

    score: float
    token: int
    token_str: str
    sequence: str


@dataclass(frozen=True, slots=True)
class Attribution:
    """How much a span of the text contributed to a label.

    start, end: characters of the original text. weight: signed; the weights of a text add up to its
    effect on the label's logit, within the error of the method.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Attributions of one text to one label."""

    label: int
    prediction: Prediction
    attributions: tuple[Attribution, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of one version of a model.

    task: "classification", "multi-label", "regression", "masked-lm" or "embedding". width: of an
    embedding, else 0. max_length: the longest text that is read whole, in tokens. engine: the
    backend, as "onnxruntime int8". metrics: measured on held-out texts. created: seconds since
    1970. state: "ready", "loading" or "cold" (loaded on first use).
    pooling: of an embedding, "mean" or "cls", if known. batch_tokens: most tokens of a batch.
    thresholds, verdict, target, examples, profile, prompts: as in the card of the bundle.
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
    thresholds: Mapping[str, float] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, float] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    profile: RowProfile | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The labels, or the one name of a regression's value."""
        return self.labels or ("value",)


def choose_labels(
    scores: Sequence[float], labels: Sequence[str], task: str, thresholds: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the labels that are the answer to a text, in the order of the card.

    scores: a probability for each of `labels`. thresholds: of the card. classification: one label,
    the likeliest; of exactly two the second where its probability reaches its threshold, else the
    first. multi-label: each whose probability reaches its threshold, by default 0.5; perhaps none.
    Other tasks have no labels: ().
    """
    if task == "multi-label":
        pairs = zip(labels, scores, strict=True)
        return tuple(label for label, score in pairs if score >= thresholds.get(label, 0.5))
    if task != "classification":
        return ()
    if len(labels) == 2 and labels[1] in thresholds:
        return (labels[int(scores[1] >= thresholds[labels[1]])],)
    return (labels[max(range(len(labels)), key=scores.__getitem__)],)


@dataclass(frozen=True, slots=True)
class InferenceResult(Generic[T]):
    """The outputs for the texts of one request, in order, by one version of a model.

    rows: the token ids of each text as computed, special tokens included, its windows end to end.
    truncated: by place the texts of which the model did not read all.
    """

    model: ModelInfo
    values: Sequence[T]
    rows: Sequence[np.ndarray]
    truncated: Sequence[int] = ()

    @property
    def num_tokens(self) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.rows]


@dataclass(slots=True)
class ModelStatistics:
    """What one version of a model has done since this replica loaded it.

    num_executions: batches. seconds: total of the answered requests (queue and compute).
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


class Limits(Settings):
    """Limits of one request, and of all requests to a replica together.

    max_texts: of a request. max_body_bytes: after decompression. max_wait_seconds: a request that
    would wait longer for its turn is refused at once; under overload already one that would wait
    longer than PROMISED_WAIT_SECONDS. max_waiting_requests: that are held, whatever their wait.
    """

    max_texts: int = Field(2048, ge=1)
    max_body_bytes: int = Field(16 * 1024 * 1024, ge=1024)
    max_wait_seconds: float = Field(5.0, ge=0, allow_inf_nan=False)
    max_waiting_requests: int = Field(4096, ge=0)

    def waiting_under_overload(self, tokens_per_second: float) -> tuple[int, int]:
        """Return the most requests and tokens that then wait for an engine of that speed."""
        in_time = int(tokens_per_second * PROMISED_WAIT_SECONDS)
        requests = max(DEFAULT_WAITING_REQUESTS, in_time // SHORT_REQUEST_TOKENS)
        return min(requests, self.max_waiting_requests), max(DEFAULT_WAITING_TOKENS, in_time)


class ModelManagement(Protocol):
    """Changes to what an endpoint serves. Every call raises HTTPError and nothing else."""

    async def register(self, url: str, name: str | None) -> ModelInfo:
        """Register the bundle in a directory as the next version of a name."""

    async def set_default(self, name: str, version: str) -> None:
        """Make a version the one that answers for the bare name."""

    async def unregister(self, name: str, version: str | None) -> None:
        """Remove a version, by default the live one; refused while others need it."""

    async def load_model(self, model: str) -> None:
        """Load a model into memory."""

    async def unload_model(self, model: str) -> None:
        """Free its memory; it loads again on the next request."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """The right answer to a text, from somebody who knows it.

    answer: a label, several of them of a multi-label model, or the number of a regression. text: as
    it was asked; "": the one at `index` of the request that `request_id` names. model: as in
    `Models`, of a text.
    """

    answer: str | tuple[str, ...] | float
    text: str = ""
    model: str | None = None
    request_id: str = ""
    index: int = 0


@runtime_checkable
class FeedbackTaking(Protocol):
    """Models that take feedback; a part of `Models` where a directory for it was given."""

    async def keep_feedback(self, feedback: Feedback) -> ModelInfo:
        """Keep the right answer to a text; return whose it is. Raises HTTPError."""


class Models(Protocol):
    """The models of an endpoint. Any text may be a `TextInput`.

    model: "sentiment", "sentiment:3", "sentiment@best", or None for the default one. Every call
    raises HTTPError and nothing else: no-model, wrong-task, too-large, too-long, empty, unreadable,
    overloaded, late, failed, unready.
    """

    limits: Limits

    @property
    def management(self) -> ModelManagement | None:
        """Changes to the models; None if they are fixed."""

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        """Classify or score texts: classification, multi-label and regression."""

    async def embed(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Vector]:
        """Embed texts: embedding."""

    async def embed_tokens(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[np.ndarray]:
        """Return the vectors [tokens, width] of all tokens of each text: embedding."""

    async def fill_mask(
        self,
        model: str | None,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> InferenceResult[tuple[tuple[MaskPrediction, ...], ...]]:
        """Predict the likeliest tokens of each mask of each text: masked-lm."""

    async def explain(
        self, model: str | None, texts: Sequence[str], *, label: str | None = None
    ) -> InferenceResult[Explanation]:
        """Attribute a label, by default the answer, to words: classification, multi-label."""

    async def count_tokens(self, model: str | None, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text before it is cut at max_length of its `ModelInfo`.

        Of a very long text, at least so many.
        """

    async def tokenize(
        self, model: str | None, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> Sequence[Sequence[Token]]:
        """Return the tokens of each text before it is cut."""

    async def detokenize(
        self, model: str | None, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = True
    ) -> Sequence[str]:
        """Return the text of each row of token ids."""

    def get_info(self, model: str | None) -> ModelInfo:
        """Describe a model without loading it."""

    def list_models(self) -> Sequence[ModelInfo]:
        """Return all versions that are not damaged, the live one of the default model first."""

    def get_statistics(self, model: str | None) -> ModelStatistics:
        """Return the statistics of one version."""

    async def is_ready(self) -> bool:
        """Return whether the default model answers, or another where its files are damaged."""
