"""Labels and their scores, in the order and under the function that a client asks for."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from serving.interface import ModelInfo, Prediction
from serving.interface import choose_labels as choose_labels

VALUE = "value"  # stands for a label where a model predicts one number

ScoreFunction = Literal["softmax", "sigmoid", "none"]


def rank_labels(
    scores: Sequence[float], labels: Sequence[str], top_k: int | None = None
) -> list[dict[str, Any]]:
    """Return labels with their scores, the highest first; all of them, or the first `top_k`."""
    pairs = zip(scores, labels or (VALUE,), strict=True)
    ranked = sorted(pairs, key=lambda pair: -pair[0])[:top_k]
    return [{"score": score, "label": label} for score, label in ranked]


def is_answer(prediction: Prediction, model: ModelInfo) -> list[bool]:
    """Return for each label of the card whether it is the answer, as `choose_labels` says."""
    chosen = choose_labels(prediction.scores, model.labels, model.task, model.thresholds)
    return [label in chosen for label in model.labels]


def answer_index(prediction: Prediction, model: ModelInfo) -> int:
    """Return the index of the one label to name: the likeliest of the answer, else of all."""
    scores = prediction.scores
    given = [index for index, chosen in enumerate(is_answer(prediction, model)) if chosen]
    return max(given or range(len(scores)), key=scores.__getitem__)


def rank_answer(
    prediction: Prediction,
    model: ModelInfo,
    scores: Sequence[float] | None = None,
    top_k: int | None = None,
) -> list[dict[str, Any]]:
    """Return labels with their scores, those of the answer first, each part by falling score.

    So the first is the answer whatever the thresholds, and without thresholds the order is that of
    the scores alone. scores: to return for the labels, as logits; by default the probabilities.
    """
    shown = prediction.scores if scores is None else scores
    if not model.labels:
        return rank_labels(shown, (), top_k)
    rows = zip(is_answer(prediction, model), shown, model.labels, strict=True)
    ranked = sorted(rows, key=lambda row: (not row[0], -row[1]))[:top_k]
    return [{"score": score, "label": label} for _, score, label in ranked]


def apply_function(prediction: Prediction, function: ScoreFunction | None) -> Sequence[float]:
    """Return the logits under `function`; None: the scores of the model's own function."""
    if function is None:
        return prediction.scores
    if function == "softmax":
        return _softmax(prediction.logits)
    return tuple(map(_sigmoid, prediction.logits)) if function == "sigmoid" else prediction.logits


def _softmax(logits: Sequence[float]) -> tuple[float, ...]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(powers)
    return tuple(power / total for power in powers)


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)  # of a negative number: cannot overflow
    return power / (1 + power)
