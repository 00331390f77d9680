"""What held-out texts and their answers look like: a few counts that live ones are compared with.

Kept in the card of a bundle. A histogram has bins of numbers, or of names.

    profile = RowProfile(rows=2, features={"tokens": Histogram(edges=(8.0,), counts=(1, 1))})
    profile.features["tokens"].find_bin(9)      # 1: more than 8
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from pydantic import Field, NonNegativeInt, field_validator, model_validator

from cluster.settings import Settings

FEATURES = ("tokens", "unknown_tokens", "labels", "confidence", "values")
UNKNOWN_EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
CONFIDENCE_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
DECILES = np.arange(1, 10) / 10
MAX_NAMES = 50  # bins of labels; rarer ones are one together
MAX_BINS = MAX_NAMES + 2
NO_LABEL, OTHER_LABELS = "(none)", "(other)"


class Histogram(Settings):
    """Counts by bin: of numbers up to each of `edges` and beyond the last, or of `names`."""

    edges: tuple[float, ...] = Field((), description="largest number of each bin but the last")
    names: tuple[str, ...] = Field((), description="of the bins, where they are labels")
    counts: tuple[NonNegativeInt, ...] = Field(
        max_length=MAX_BINS, description="held-out texts in each bin"
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> "Histogram":
        expected = len(self.names) or len(self.edges) + 1
        if len(self.counts) != expected or list(self.edges) != sorted(self.edges):
            raise ValueError(f"{len(self.counts)} counts for {expected} bins; train again")
        return self

    @property
    def bins(self) -> tuple[str, ...]:
        """A name of each bin: the label, or the range of numbers."""
        if self.names:
            return self.names
        ends = [f"{edge:g}" for edge in self.edges]
        return (*(f"<={end}" for end in ends), f">{ends[-1]}" if ends else "all")

    def find_bin(self, value: float) -> int:
        """Return the bin of a number."""
        return bisect_left(self.edges, value)


class RowProfile(Settings):
    """Histograms of held-out rows: tokens, unknown_tokens, and labels with confidence or values."""

    rows: int = Field(description="held-out texts that were counted")
    unknown_id: int | None = Field(None, description="id of the token for unknown words")
    features: dict[str, Histogram] = Field(
        description="tokens of a text; share of unknown ones; labels that are the answer and the "
        "highest probability, or the values of a regression"
    )

    @field_validator("features")
    @classmethod
    def _check_names(cls, features: dict[str, Histogram]) -> dict[str, Histogram]:
        if "tokens" not in features or features.keys() - set(FEATURES):
            raise ValueError(
                f"features {', '.join(sorted(features))[:200]}: expected tokens, and of "
                f"{', '.join(FEATURES)}; train again"
            )
        return features


def profile_rows(
    task: str,
    labels: Sequence[str],
    rows: Sequence[np.ndarray],
    logits: np.ndarray,
    predicted: np.ndarray,
    unknown_id: int | None,
) -> RowProfile | None:
    """Return the profile of held-out rows; None where there are none.

    rows: token ids. logits: [n, num_labels], with the temperature in them. predicted: the answers,
    [n] indices or [n, num_labels] of 0 and 1. unknown_id: of the tokenizer.
    """
    if not len(rows):
        return None
    features = {"tokens": _count_deciles(np.array([len(row) for row in rows]))}
    if unknown_id is not None:
        shares = [unknown_share(row, unknown_id) for row in rows]
        features["unknown_tokens"] = _count(np.array(shares), UNKNOWN_EDGES)
    if task == "regression":
        features["values"] = _count_deciles(logits[:, 0])
    else:
        features["labels"] = _count_labels(predicted, labels)
        features["confidence"] = _count(_probabilities(task, logits).max(axis=1), CONFIDENCE_EDGES)
    return RowProfile(rows=len(rows), unknown_id=unknown_id, features=features)


def unknown_share(row: np.ndarray, unknown_id: int) -> float:
    """Return the share of a text's tokens that stand for unknown words."""
    return int(np.count_nonzero(row == unknown_id)) / max(1, len(row))


def _count(values: np.ndarray, edges: Sequence[float]) -> Histogram:
    bins = np.searchsorted(np.asarray(edges), values, side="left")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(counts.tolist()))


def _count_deciles(values: np.ndarray) -> Histogram:
    """Return a histogram whose bins hold about a tenth of the values each."""
    edges = np.unique(np.quantile(values.astype(np.float64), DECILES, method="lower"))
    return _count(values.astype(np.float64), edges.tolist())


def _count_labels(predicted: np.ndarray, labels: Sequence[str]) -> Histogram:
    """Count the labels that are answers. predicted: [n] indices, or [n, num_labels] of 0 and 1."""
    if predicted.ndim == 1:
        counts, without = np.bincount(predicted, minlength=len(labels)), None
    else:
        given = predicted > 0.5
        counts, without = given.sum(axis=0), int((~given.any(axis=1)).sum())
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_NAMES])
    names = [labels[index] for index in kept]
    numbers = counts[kept].tolist()
    if len(kept) < len(labels):
        names.append(OTHER_LABELS)
        numbers.append(int(counts.sum()) - sum(numbers))
    if without is not None:
        names.append(NO_LABEL)
        numbers.append(without)
    return Histogram(names=tuple(names), counts=tuple(numbers))


def _probabilities(task: str, logits: np.ndarray) -> np.ndarray:
    """Return the probabilities [n, num_labels] of logits, as serving does."""
    if task == "multi-label":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-logits)))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
