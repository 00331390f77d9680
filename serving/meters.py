"""What an endpoint has done, counted, and told to Prometheus in its text format.

Counts are plain numbers that add up, so that those of several replicas are merged by addition.
Knows no model and no HTTP server.
"""

import bisect
from collections.abc import Iterable, Mapping
from typing import Any

# Upper ends of the latency histogram, in seconds.
BUCKETS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels]

HELP = {
    "bertha_requests_total": ("counter", "Requests by protocol, route and status."),
    "bertha_request_seconds": ("histogram", "Seconds from the request line to the reply."),
    "bertha_texts_total": ("counter", "Texts answered, by model and version."),
    "bertha_refusals_total": ("counter", "Texts of requests that were refused, by model and kind."),
    "bertha_queue_seconds_total": ("counter", "Seconds that requests waited for a model."),
    "bertha_batches_total": ("counter", "Batches that ran."),
    "bertha_batch_rows_total": (
        "counter",
        "Texts in these batches; by batches: how full they are.",
    ),
    "bertha_tokens_total": ("counter", "Tokens computed, without padding."),
    "bertha_padded_tokens_total": ("counter", "Tokens computed, with padding."),
    "bertha_busy_seconds_total": ("counter", "Seconds that the engines computed."),
    "bertha_waiting_requests": ("gauge", "Requests without an answer yet."),
    "bertha_model_loaded": ("gauge", "1 for each version of a model in memory."),
    "bertha_model_bytes": ("gauge", "Memory of each version of a model."),
    "bertha_replicas": ("gauge", "Replicas that answer."),
}


class Meters:
    """Counters and gauges of one replica."""

    def __init__(self) -> None:
        self.values: dict[Sample, float] = {}
        self._histograms: dict[Labels, list[float]] = {}  # buckets, then sum

    def count(self, protocol: str, route: str, status: int, seconds: float) -> None:
        """One request that was answered, or left (499)."""
        who = (("protocol", protocol), ("route", route))
        self.add("bertha_requests_total", 1, *who, ("status", str(status)))
        held = self._histograms.get(who)
        if held is None:
            held = self._histograms[who] = [0.0] * (len(BUCKETS) + 2)
        held[bisect.bisect_left(BUCKETS, seconds)] += 1
        held[-1] += seconds

    def add(self, name: str, number: float, *labels: tuple[str, str]) -> None:
        """Let a counter grow."""
        key = (name, labels)
        self.values[key] = self.values.get(key, 0.0) + number

    def set(self, name: str, number: float, *labels: tuple[str, str]) -> None:
        """Set a gauge."""
        self.values[name, labels] = number

    def snapshot(self) -> dict[Sample, float]:
        """Everything counted so far, histograms as the counters they are."""
        found = dict(self.values)
        for labels, held in self._histograms.items():
            total = 0.0
            for end, number in zip((*BUCKETS, float("inf")), held, strict=False):
                total += number
                bound = "+Inf" if end == float("inf") else f"{end:g}"
                found["bertha_request_seconds_bucket", (*labels, ("le", bound))] = total
            found["bertha_request_seconds_count", labels] = total
            found["bertha_request_seconds_sum", labels] = held[-1]
        return found


def merged(snapshots: Iterable[Mapping[Sample, float]]) -> dict[Sample, float]:
    """The sum of what several replicas counted."""
    total: dict[Sample, float] = {}
    for snapshot in snapshots:
        for sample, number in snapshot.items():
            total[sample] = total.get(sample, 0.0) + number
    return total


def exposition(snapshot: Mapping[Sample, float]) -> str:
    """The text that Prometheus scrapes."""
    by_name: dict[str, list[str]] = {name: [] for name in HELP}
    for (name, labels), number in sorted(snapshot.items(), key=_order):
        base = name if name in HELP else name.rpartition("_")[0]
        shown = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels)
        by_name[base].append(
            f"{name}{{{shown}}} {number:.10g}" if shown else f"{name} {number:.10g}"
        )
    lines = []
    for name, samples in by_name.items():
        if samples:
            kind, text = HELP[name]
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
    return "\n".join(lines) + "\n"


def _order(item: tuple[Sample, float]) -> tuple[Any, ...]:
    """By name and labels, the buckets of a histogram by their end."""
    (name, labels), _ = item
    return name, [(k, float(v) if k == "le" else 0.0, v) for k, v in labels]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
