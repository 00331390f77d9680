"""How faithful an engine is to another: pure functions of their outputs.

What agrees, by task: classification, the likeliest label; multi-label, every label; regression, a
number within 1% of the standard deviation of the targets; embedding, a cosine of 0.999 or more;
masked-lm, the likeliest token of each mask.
"""

import math
from typing import Any

import numpy as np
import torch

from trainers.card import Card
from trainers.metrics import Metrics, Tally

NEAR = 0.01  # of the standard deviation of a regression's targets
PARALLEL = 0.999  # cosine


def agreeing(
    task: str, reference: np.ndarray, outputs: np.ndarray, deviation: float = 1.0
) -> np.ndarray:
    """Which rows [n] bool of `outputs` [n, width] mean what those of `reference` do.

    deviation: of a regression's targets.
    """
    if task == "multi-label":
        same: np.ndarray = ((reference > 0) == (outputs > 0)).all(axis=1)
    elif task == "regression":
        same = np.abs(reference - outputs)[:, 0] <= NEAR * deviation
    elif task == "embedding":
        same = (reference * outputs).sum(axis=1) >= PARALLEL
    else:
        same = reference.argmax(axis=1) == outputs.argmax(axis=1)
    return same


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
