"""Labels and their scores, in the order and under the function that a client asks for."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from serving.interface import Prediction

VALUE = "value"  # stands for a label where a model predicts one number

ScoreFunction = Literal["softmax", "sigmoid", "none"]


def rank_labels(
    scores: Sequence[float], labels: Sequence[str], top_k: int | None = None
) -> list[dict[str, Any]]:
    """Return labels with their scores, the highest first; all of them, or the first `top_k`."""
    pairs = zip(scores, labels or (VALUE,), strict=True)
    ranked = sorted(pairs, key=lambda pair: -pair[0])[:top_k]
    return [{"score": score, "label": label} for score, label in ranked]


def most_likely(prediction: Prediction) -> int:
    """Return the index of the likeliest label."""
    return prediction.scores.index(max(prediction.scores))


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
