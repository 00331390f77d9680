"""Budgets and costs of a search, and what the next improvement is expected to cost.

A cluster costs its nodes' price and power for as long as it is held, busy or not. Prices and powers
are those of the cluster file (`metadata.price_usd_per_hour`, `metadata.power_watts`, per node).

The next improvement: if nothing is known about which trial is better than which, each of n trials
is equally likely to be the best, and the chance that one of the next m beats the best of n is
m / (n + m). So an even chance costs as many trials as there were, at the mean price of those.
That is a simple model: a sampler that learns does better, a space that is exhausted worse.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.settings import SettingsError
from cluster.spec import ClusterSpec
from trainers.tracking.progress import format_duration

PERFECT = {"loss": 0.0, "mae": 0.0, "perplexity": 1.0}  # of the other metrics 1
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
BUDGET = re.compile(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z$]+)")


@dataclass(frozen=True)
class Spend:
    """The cost of holding a cluster. usd, kwh: None where the cluster file does not say."""

    seconds: float
    usd: float | None
    kwh: float | None

    @classmethod
    def for_seconds(cls, seconds: float, cluster: ClusterSpec) -> "Spend":
        """Return the cost of holding `cluster` for `seconds`."""
        node_hours = seconds / 3600 * cluster.num_nodes
        price, power = cluster.metadata.price_usd_per_hour, cluster.metadata.power_watts
        return cls(
            seconds,
            None if price is None else node_hours * price,
            None if power is None else node_hours * power / 1000,
        )

    def __str__(self) -> str:
        parts = [format_duration(self.seconds)]
        parts += [] if self.usd is None else [f"${self.usd:,.2f}"]
        parts += [] if self.kwh is None else [f"{self.kwh:,.2f} kWh"]
        return ", ".join(parts)


def parse_budget(given: str, cluster: ClusterSpec) -> float:
    """Return the seconds of holding `cluster` that a budget such as 2h, 90m, 50USD or 3kWh buys.

    Raises SettingsError for anything else, and if the cluster file names no price or power.
    """
    match = BUDGET.fullmatch(given.strip())
    unit = match[2].lower() if match else ""
    amount = float(match[1]) if match else 0.0
    if amount <= 0 or unit not in (*SECONDS, "usd", "$", "kwh"):
        raise SettingsError(f"--budget {given!r}: give time, dollars or energy: 2h, 50USD, 3kWh")
    if unit in SECONDS:
        return amount * SECONDS[unit]
    hour = Spend.for_seconds(3600, cluster)
    rate, field = (hour.kwh, "power_watts") if unit == "kwh" else (hour.usd, "price_usd_per_hour")
    if not rate:
        raise SettingsError(
            f"--budget {given!r}: cluster {cluster.name} names no metadata.{field} (per node); "
            "add it to the cluster file, or give a budget of time"
        )
    return amount / rate * 3600


def estimate_next_improvement(seconds: Sequence[float], cluster: ClusterSpec, slots: int) -> Spend:
    """Return the expected cost of an even chance of a better trial.

    seconds: of each trial of the search. slots: trials that run at once.
    """
    return Spend.for_seconds(sum(seconds) / slots, cluster)


def is_perfect(metric: str, value: float) -> bool:
    """Return whether no value of a metric can be better, so that a search has nothing to find."""
    best = PERFECT.get(metric, 1.0)
    return abs(value - best) < 1e-9 or (value > best) != (metric in PERFECT)
