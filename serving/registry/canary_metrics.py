"""Metrics of a canary and of the live version: counters that add up over replicas.

Latencies are counted in buckets that grow by a constant factor, so that histograms of several
replicas add up, and a quantile is known to 2.2%.

    metrics = CanaryMetrics("sentiment", live="3", canary="4", started=1767225600.0)
    metrics.live_metrics.record_request(0.012)
    metrics.canary_metrics.record_request(0.015, failed=True)
    metrics.record_pair("positive", "negative")      # of one text that both versions answered
    merge_metrics([metrics, of_another_replica])
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

PER_OCTAVE = 16  # buckets between a latency and its double
SHORTEST_SECONDS, LONGEST_SECONDS = 1e-6, 1e6


@dataclass
class LatencyHistogram:
    """A histogram of latencies in logarithmic buckets."""

    counts: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return self.counts.total()

    def __add__(self, other: "LatencyHistogram") -> "LatencyHistogram":
        return LatencyHistogram(self.counts + other.counts)

    def record_latency(self, seconds: float) -> None:
        """Count one latency."""
        within = min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
        self.counts[math.floor(math.log2(within / SHORTEST_SECONDS) * PER_OCTAVE)] += 1

    def nth_smallest(self, rank: int) -> float:
        """Return the `rank`th smallest latency, counted from 1: the middle of its bucket.

        A rank beyond the last means the last; 0 if there is none.
        """
        seen = 0
        for bucket, count in sorted(self.counts.items()):
            seen += count
            if seen >= min(rank, len(self)):
                return float(SHORTEST_SECONDS * 2.0 ** ((bucket + 0.5) / PER_OCTAVE))
        return 0.0

    def quantile(self, share: float) -> float:
        """Return the latency that `share` of all do not exceed; 0 if there is none."""
        return self.nth_smallest(max(1, math.ceil(share * len(self))))


@dataclass
class VariantMetrics:
    """The requests of one version; latencies of failed ones are not counted."""

    requests: int = 0
    errors: int = 0
    latencies: LatencyHistogram = field(default_factory=LatencyHistogram)

    def record_request(self, seconds: float, *, failed: bool = False) -> None:
        """Count one request."""
        self.requests += 1
        if failed:
            self.errors += 1
        else:
            self.latencies.record_latency(seconds)

    def summary(self) -> dict[str, float]:
        """Return requests, errors, and quantiles of latency in milliseconds."""
        quantiles = {
            f"p{round(100 * share)}_ms": round(1000 * self.latencies.quantile(share), 2)
            for share in (0.5, 0.95, 0.99)
        }
        return {"requests": self.requests, "errors": self.errors, **quantiles}

    def __add__(self, other: "VariantMetrics") -> "VariantMetrics":
        return VariantMetrics(
            self.requests + other.requests,
            self.errors + other.errors,
            self.latencies + other.latencies,
        )


@dataclass
class CanaryMetrics:
    """All that is counted of one canary.

    live, canary: the versions. started: of the canary, which tells it from another trial of the
    same version. pairs: of texts that both versions answered, how often which label met which; if
    models give no labels, answers that are close enough count as the same label.
    """

    name: str
    live: str
    canary: str
    started: float
    live_metrics: VariantMetrics = field(default_factory=VariantMetrics)
    canary_metrics: VariantMetrics = field(default_factory=VariantMetrics)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def trial_id(self) -> tuple[str, str, str, float]:
        """What is counted; only metrics of one trial add up."""
        return self.name, self.live, self.canary, self.started

    @property
    def num_pairs(self) -> int:
        """Texts that both versions answered."""
        return self.pairs.total()

    @property
    def num_disagreed(self) -> int:
        """Texts that they answered differently."""
        return sum(count for (live, canary), count in self.pairs.items() if live != canary)

    def record_pair(self, live_label: str, canary_label: str) -> None:
        """Count a text that both versions answered."""
        self.pairs[live_label, canary_label] += 1

    def __add__(self, other: "CanaryMetrics") -> "CanaryMetrics":
        if self.trial_id != other.trial_id:
            raise ValueError(f"metrics of {self.trial_id} and {other.trial_id} do not add up")
        return CanaryMetrics(
            *self.trial_id,
            self.live_metrics + other.live_metrics,
            self.canary_metrics + other.canary_metrics,
            self.pairs + other.pairs,
        )

    def confusion_matrix(
        self, labels: Iterable[str] = ()
    ) -> tuple[tuple[str, ...], list[list[int]]]:
        """Return labels, those given first, and counts; a row is a label of the live version."""
        seen = sorted({label for pair in self.pairs for label in pair})
        names = tuple(dict.fromkeys([*labels, *seen]))
        return names, [[self.pairs[row, column] for column in names] for row in names]

    def summary(self) -> dict[str, Any]:
        """Return what a person compares: both versions, and their labels for the same texts."""
        labels, rows = self.confusion_matrix()
        return {
            "name": self.name,
            "started": self.started,
            "live": {"version": self.live, **self.live_metrics.summary()},
            "canary": {"version": self.canary, **self.canary_metrics.summary()},
            "agreement": {
                "texts": self.num_pairs,
                "differ": self.num_disagreed,
                "labels": list(labels),
                "live_by_canary": rows,
            },
        }


def merge_metrics(metrics: Iterable[CanaryMetrics]) -> CanaryMetrics:
    """Add up the metrics of one trial, at least one."""
    return reduce(CanaryMetrics.__add__, metrics)
