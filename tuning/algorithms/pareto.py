"""What could be deployed: the best trial of each model that was searched, on each engine.

A model is what the settings of a trial make of its sizes: `model.layers` for students, `model.name`
and the like. Two trials of one model answer equally fast, so the better of them stands for both.
Variants are compared by the metric, the p95 latency and the price of a million predictions; the
front holds those that no other beats in one of them without losing in another. All follow from what
building an engine measures: texts a CPU-second, and how many tokens it computes at once. Pure.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.planning.serving_cost import UTILISATION
from cluster.spec import ClusterSpec
from tuning.algorithms.trial import Trial, completed
from tuning.space.space import Point, Value

MILLION = 1_000_000  # predictions
SAME_SIZES = ("model.dropout", "model.attention_dropout")  # of the model group, change no size


@dataclass(frozen=True)
class Variant:
    """A trial's model on an engine. metric: on the held-out rows, as itself, not as a score.

    p95_seconds: of a request with a text as long as the model reads. cpu_seconds: of a million
    predictions. usd: the same in dollars; None where the cluster file names no price. refused: why
    this engine may not serve; "" where it may.
    """

    trial: int
    engine: str
    metric: float
    p95_seconds: float
    cpu_seconds: float
    usd: float | None = None
    refused: str = ""

    def price(self) -> str:
        """Of a million predictions, for a person."""
        return f"{self.cpu_seconds:,.0f} CPU-seconds" if self.usd is None else f"${self.usd:,.2f}"


def model_of(point: Point) -> tuple[tuple[str, Value], ...]:
    """What of a trial's settings decides the sizes of its model; () where that is not searched."""
    return tuple(
        (key, value)
        for key, value in sorted(point.items())
        if key.startswith("model.") and key not in SAME_SIZES
    )


def rivals(trial: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of the same model: a small model is not stopped for being worse than a large."""
    return [other for other in trials if model_of(other.point) == model_of(trial.point)]


def candidates(trials: Sequence[Trial], winner: int | None = None) -> list[int]:
    """The numbers of the best completed trials, one of each model, best first.

    winner: stands for its model whatever its score, where it is known.
    """
    best = {} if winner is None else {model_of(trials[winner].point): winner}
    for trial in completed(trials):
        best.setdefault(model_of(trial.point), trial.number)
    return list(best.values())


def p95_seconds(batch_tokens: int, length: int, texts_per_second: float) -> float:
    """Seconds of two batches of texts of `length` tokens: the one before a request, and its own, as
    in cluster/planning/serving_cost.py.
    """
    return 2 * max(1, batch_tokens // length) / texts_per_second


def usd(cpu_seconds: float, cluster: ClusterSpec, cores: int | None = None) -> float | None:
    """Dollars of CPU-seconds on a node of the cluster; None where its file names no price.

    cores: of the node, as busy as in cluster/planning/serving_cost.py; default:
    of this machine.
    """
    price = cluster.metadata.price_usd_per_hour
    if price is None:
        return None
    cores = cores or os.cpu_count() or 1
    return price * cpu_seconds / 3600 / cores / UTILISATION


def front(variants: Sequence[Variant], sign: int) -> list[Variant]:
    """The variants that may serve and that none of those beats, best metric first.

    sign: 1 where a higher metric is better, -1 where a lower one is.
    """
    serving = [variant for variant in variants if not variant.refused]
    kept = [one for one in serving if not any(_beats(other, one, sign) for other in serving)]
    return sorted(kept, key=lambda variant: (-sign * variant.metric, variant.cpu_seconds))


def _beats(one: Variant, other: Variant, sign: int) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    mine, theirs = (
        (-sign * each.metric, each.p95_seconds, each.cpu_seconds) for each in (one, other)
    )
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))
