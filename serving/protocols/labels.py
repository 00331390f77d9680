"""Labels and their scores, in the order and by the function that a client asks for. Pure."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from serving.interface import Prediction

VALUE = "value"  # what stands for a label where a model answers one number

Function = Literal["softmax", "sigmoid", "none"]


def ranked(
    scores: Sequence[float], labels: Sequence[str], top_k: int | None = None
) -> list[dict[str, Any]]:
    """Labels with their scores, the highest first; all of them, or the first `top_k`."""
    pairs = zip(scores, labels or (VALUE,), strict=True)
    best = sorted(pairs, key=lambda pair: -pair[0])[:top_k]
    return [{"score": score, "label": label} for score, label in best]


def best(prediction: Prediction) -> int:
    """The index of the likeliest label."""
    scores = prediction.scores
    return scores.index(max(scores))


def applied(prediction: Prediction, function: Function | None) -> Sequence[float]:
    """The logits under a function of the client's choice, by default the model's own scores."""
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
