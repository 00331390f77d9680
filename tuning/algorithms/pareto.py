"""Deployment options, the best trial of each model on each engine, and their Pareto front.

A model here is the architecture that a trial's settings define: `model.layers` for students,
`model.name` and the like. Two trials of one model are equally fast, so the better one represents
both. Options are compared by metric, p95 latency and price of a million predictions; the front
holds those that no other beats in one of them without losing in another.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.planning.serving_cost import UTILISATION
from cluster.spec import ClusterSpec
from tuning.algorithms.trial import Trial, rank_completed
from tuning.space.space import Point, Value

MILLION = 1_000_000  # predictions
SAME_SIZES = ("model.dropout", "model.attention_dropout")  # model settings that change no size


@dataclass(frozen=True)
class DeploymentOption:
    """A trial's model on an engine. Its fields are written to result.json.

    metric: on the held-out rows, as itself, not as a score. p95_seconds: of a request with a text
    as long as the model reads. cpu_seconds, usd: of a million predictions; usd is None where the
    cluster file names no price. refused: why this engine may not serve; "" where it may.
    """

    trial: int
    engine: str
    metric: float
    p95_seconds: float
    cpu_seconds: float
    usd: float | None = None
    refused: str = ""

    @property
    def price_text(self) -> str:
        """The price of a million predictions, for a person."""
        return f"{self.cpu_seconds:,.0f} CPU-seconds" if self.usd is None else f"${self.usd:,.2f}"


def model_settings(settings: Point) -> tuple[tuple[str, Value], ...]:
    """Return those settings of a trial that define its model; () where none is searched."""
    return tuple(
        (key, value)
        for key, value in sorted(settings.items())
        if key.startswith("model.") and key not in SAME_SIZES
    )


def same_model_trials(trial: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials of the same model as `trial`.

    In a search for deployment a trial competes with these alone: a small model is not stopped for
    scoring below a large one.
    """
    model = model_settings(trial.settings)
    return [other for other in trials if model_settings(other.settings) == model]


def best_of_each_model(trials: Sequence[Trial], winner: int | None = None) -> list[int]:
    """Return the numbers of the best completed trials, one of each model, best first.

    winner: represents its model whatever its score, if given.
    """
    best = {} if winner is None else {model_settings(trials[winner].settings): winner}
    for trial in rank_completed(trials):
        best.setdefault(model_settings(trial.settings), trial.number)
    return list(best.values())


def estimate_p95_seconds(batch_tokens: int, length: int, texts_per_second: float) -> float:
    """Return the seconds of two batches of texts of `length` tokens.

    The batch ahead of a request and its own, as in cluster/planning/serving_cost.py.
    """
    return 2 * max(1, batch_tokens // length) / texts_per_second


def price_in_usd(
    cpu_seconds: float, cluster: ClusterSpec, cores: int | None = None
) -> float | None:
    """Return the price of CPU-seconds on a node of the cluster, or None if its file names none.

    cores: of the node (default: of this machine), as busy as in cluster/planning/serving_cost.py.
    """
    price = cluster.metadata.price_usd_per_hour
    if price is None:
        return None
    cores = cores or os.cpu_count() or 1
    return price * cpu_seconds / 3600 / cores / UTILISATION


def pareto_front(options: Sequence[DeploymentOption], sign: int) -> list[DeploymentOption]:
    """Return the options that may serve and that no such option dominates, best metric first.

    sign: 1 where a higher metric is better, -1 where a lower one is.
    """
    allowed = [option for option in options if not option.refused]
    front = [one for one in allowed if not any(_dominates(other, one, sign) for other in allowed)]
    return sorted(front, key=lambda option: (-sign * option.metric, option.cpu_seconds))


def _dominates(one: DeploymentOption, other: DeploymentOption, sign: int) -> bool:
    """Return whether `one` is nowhere worse than `other`, and somewhere better."""
    mine, theirs = (
        (-sign * each.metric, each.p95_seconds, each.cpu_seconds) for each in (one, other)
    )
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))
