"""How faithful an engine is to another, and how good: pure functions of their outputs.

What agrees is said in `trainers/training/answers.py`, for a student is compared with its teacher
alike.
"""

import math
from typing import Any

import numpy as np
import torch

from trainers.models.card import Card
from trainers.training.answers import agreeing
from trainers.training.metrics import Metrics, Tally

__all__ = ["agreeing", "deviation_of", "metrics_of"]


def deviation_of(reference: np.ndarray, targets: np.ndarray | None) -> float:
    """The standard deviation of a regression's targets, or where there are none, of its answers."""
    return float(np.std(reference if targets is None else targets))


def metrics_of(card: Card, outputs: np.ndarray, targets: np.ndarray | None) -> Metrics:
    """The metrics of outputs [n, width] against targets; none without targets."""
    if targets is None or card.task == "embedding":
        return {}
    tally = Tally(card.task, max(1, len(card.labels)))
    logits = torch.from_numpy(outputs)
    if card.task == "masked-lm":
        wanted = torch.from_numpy(targets)
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        tally.add_tokens(losses, logits.argmax(dim=1) == wanted)
    else:
        tally.add(logits, torch.from_numpy(targets))
    return {name: value for name, value in tally.metrics(card.labels).items() if _plain(value)}


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
