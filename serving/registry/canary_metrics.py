"""What a canary and the live version have done: counts that add up over replicas; pure.

A tally belongs to one canary of one name. Latencies are counted in buckets that grow by a constant
factor, so that the histograms of several replicas add to the histogram of all, and a quantile is
known to 2.2%. Knows no clock, no store and no rule.

    tally = Tally("sentiment", live="3", canary="4", started=1767225600.0)
    tally.of_live.count(0.012)
    tally.of_canary.count(0.015, failed=True)
    tally.agree("positive", "negative")      # of one text that both versions answered
    merged([tally, Tally.from_json(document)])
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

PER_OCTAVE = 16  # buckets between a latency and its double
SHORTEST_SECONDS, LONGEST_SECONDS = 1e-6, 1e6


class Histogram:
    """How often something took how long."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __len__(self) -> int:
        return self.counts.total()

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.counts + other.counts)

    def count(self, seconds: float) -> None:
        """Count one."""
        within = min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
        self.counts[math.floor(math.log2(within / SHORTEST_SECONDS) * PER_OCTAVE)] += 1

    def nth(self, rank: int) -> float:
        """Seconds of the `rank`th shortest, counted from 1: the middle of its bucket.

        A rank beyond the last is the last; 0 where nothing was counted.
        """
        seen = 0
        for bucket, count in sorted(self.counts.items()):
            seen += count
            if seen >= min(rank, len(self)):
                return float(SHORTEST_SECONDS * 2.0 ** ((bucket + 0.5) / PER_OCTAVE))
        return 0.0

    def quantile(self, share: float) -> float:
        """Seconds that `share` of all took at most, to half a bucket; 0 where none was counted."""
        return self.nth(max(1, math.ceil(share * len(self))))


@dataclass
class Side:
    """The requests of one version. How long the failed ones took is not counted."""

    requests: int = 0
    errors: int = 0
    latencies: Histogram = field(default_factory=Histogram)

    def count(self, seconds: float, *, failed: bool = False) -> None:
        """Count one request."""
        self.requests += 1
        if failed:
            self.errors += 1
        else:
            self.latencies.count(seconds)

    def summary(self) -> dict[str, float]:
        """Requests, errors, and quantiles of latency in milliseconds."""
        quantiles = {
            f"p{round(100 * share)}_ms": round(1000 * self.latencies.quantile(share), 2)
            for share in (0.5, 0.95, 0.99)
        }
        return {"requests": self.requests, "errors": self.errors, **quantiles}

    def __add__(self, other: "Side") -> "Side":
        return Side(
            self.requests + other.requests,
            self.errors + other.errors,
            self.latencies + other.latencies,
        )


@dataclass
class Tally:
    """All that is counted of one canary.

    live, canary: the versions. started: when the canary was, which tells it from another try of
    the same version. pairs: of texts that both versions answered, how often the live one said a
    label and the canary another or the same. Where models say no label, whoever counts gives two
    answers one name when they are near enough.
    """

    name: str
    live: str
    canary: str
    started: float
    of_live: Side = field(default_factory=Side)
    of_canary: Side = field(default_factory=Side)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def subject(self) -> tuple[str, str, str, float]:
        """What is counted; tallies of one subject add up."""
        return self.name, self.live, self.canary, self.started

    @property
    def num_pairs(self) -> int:
        """Texts that both versions answered."""
        return self.pairs.total()

    @property
    def num_disagreed(self) -> int:
        """Texts that they answered differently."""
        return sum(count for (live, canary), count in self.pairs.items() if live != canary)

    def agree(self, live_label: str, canary_label: str) -> None:
        """Count a text that both versions answered."""
        self.pairs[live_label, canary_label] += 1

    def __add__(self, other: "Tally") -> "Tally":
        if self.subject != other.subject:
            raise ValueError(f"tallies of {self.subject} and {other.subject} do not add up")
        return Tally(
            *self.subject,
            self.of_live + other.of_live,
            self.of_canary + other.of_canary,
            self.pairs + other.pairs,
        )

    def matrix(self, labels: Iterable[str] = ()) -> tuple[tuple[str, ...], list[list[int]]]:
        """Labels, those given first, and counts: a row what the live version said."""
        seen = sorted({label for pair in self.pairs for label in pair})
        names = tuple(dict.fromkeys([*labels, *seen]))
        return names, [[self.pairs[row, column] for column in names] for row in names]

    def summary(self) -> dict[str, Any]:
        """What a person compares: both sides, and which labels they gave the same texts."""
        labels, rows = self.matrix()
        return {
            "name": self.name,
            "started": self.started,
            "live": {"version": self.live, **self.of_live.summary()},
            "canary": {"version": self.canary, **self.of_canary.summary()},
            "agreement": {
                "texts": self.num_pairs,
                "differ": self.num_disagreed,
                "labels": list(labels),
                "live_by_canary": rows,
            },
        }

    def to_json(self) -> dict[str, Any]:
        """This tally as JSON's values."""
        return {
            "name": self.name,
            "live": self.live,
            "canary": self.canary,
            "started": self.started,
            "of_live": _side_to_json(self.of_live),
            "of_canary": _side_to_json(self.of_canary),
            "pairs": [[*pair, count] for pair, count in sorted(self.pairs.items())],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Tally":
        """The tally that `to_json` gave. Raises KeyError, TypeError or ValueError on others."""
        return cls(
            str(document["name"]),
            str(document["live"]),
            str(document["canary"]),
            float(document["started"]),
            _side_from_json(document["of_live"]),
            _side_from_json(document["of_canary"]),
            Counter({(str(live), str(own)): int(n) for live, own, n in document["pairs"]}),
        )


def merged(tallies: Iterable[Tally]) -> Tally:
    """The sum of the tallies of one subject, at least one."""
    return reduce(Tally.__add__, tallies)


def _side_to_json(side: Side) -> dict[str, Any]:
    latencies = {str(bucket): count for bucket, count in sorted(side.latencies.counts.items())}
    return {"requests": side.requests, "errors": side.errors, "latencies": latencies}


def _side_from_json(document: Mapping[str, Any]) -> Side:
    counts = {int(bucket): int(count) for bucket, count in document["latencies"].items()}
    return Side(int(document["requests"]), int(document["errors"]), Histogram(counts))
