"""Metrics of an endpoint, in the text format of Prometheus.

Samples are plain numbers, so that those of several replicas are merged by addition, which
prometheus_client does not offer across machines.
"""

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# Upper ends of the latency histogram, in seconds.
LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = tuple[tuple[str, str], ...]
Sample = tuple[str, Labels]

HELP = {
    "bertha_requests_total": ("counter", "Requests by protocol, route and status."),
    "bertha_request_seconds": ("histogram", "Seconds from the request line to the reply."),
    "bertha_texts_total": ("counter", "Texts answered, by model and version."),
    "bertha_answers_total": ("counter", "Requests answered, by model and version."),
    "bertha_failures_total": ("counter", "Requests that a version failed."),
    "bertha_model_seconds_total": ("counter", "Seconds until answers, by model and version."),
    "bertha_queue_seconds_total": ("counter", "Those of them that were waiting for the engine."),
    "bertha_batches_total": ("counter", "Batches that ran."),
    "bertha_batch_rows_total": (
        "counter",
        "Texts in these batches; by batches: how full they are.",
    ),
    "bertha_tokens_total": ("counter", "Tokens computed, without padding."),
    "bertha_busy_seconds_total": ("counter", "Seconds that the engines computed."),
    "bertha_waiting_requests": ("gauge", "Requests without an answer yet."),
    "bertha_model_loaded": ("gauge", "Replicas that have a version in memory."),
    "bertha_model_bytes": ("gauge", "Their memory for it."),
    "bertha_device": ("gauge", "Replicas by the device that they compute on."),
    "bertha_device_memory_bytes": ("gauge", "Memory that they hold on it, but on a CPU."),
    "bertha_cache_hits_total": ("counter", "Texts answered from the response cache."),
    "bertha_cache_misses_total": ("counter", "Texts that it did not hold."),
    "bertha_cache_texts": ("gauge", "Texts whose answers it holds."),
    "bertha_cache_bytes": ("gauge", "Their memory."),
    "bertha_drift_texts": ("gauge", "Recent texts by bin of a feature, see /drift."),
    "bertha_drift_psi": ("gauge", "Their population stability index against held-out texts."),
    "bertha_replicas": ("gauge", "Replicas that answer."),
}


class Metrics:
    """Counts the requests of one replica."""

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._histograms: dict[Labels, list[float]] = {}  # buckets, then sum

    def record_request(self, protocol: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or that its client abandoned (499)."""
        labels = (("protocol", protocol), ("route", route))
        self._requests[*labels, ("status", str(status))] += 1
        buckets = self._histograms.get(labels)
        if buckets is None:
            buckets = self._histograms[labels] = [0.0] * (len(LATENCY_BUCKETS) + 2)
        buckets[bisect.bisect_left(LATENCY_BUCKETS, seconds)] += 1
        buckets[-1] += seconds

    def snapshot(self) -> dict[Sample, float]:
        """Return all samples; a histogram as its cumulative counters."""
        samples: dict[Sample, float] = {
            ("bertha_requests_total", labels): number for labels, number in self._requests.items()
        }
        for labels, buckets in self._histograms.items():
            total = 0.0
            for end, number in zip((*LATENCY_BUCKETS, float("inf")), buckets, strict=False):
                total += number
                bound = "+Inf" if end == float("inf") else f"{end:g}"
                samples["bertha_request_seconds_bucket", (*labels, ("le", bound))] = total
            samples["bertha_request_seconds_count", labels] = total
            samples["bertha_request_seconds_sum", labels] = buckets[-1]
        return samples


def merge_snapshots(snapshots: Iterable[Mapping[Sample, float]]) -> dict[Sample, float]:
    """Add up the samples of several replicas."""
    total: dict[Sample, float] = {}
    for snapshot in snapshots:
        for sample, number in snapshot.items():
            total[sample] = total.get(sample, 0.0) + number
    return total


def to_prometheus(snapshot: Mapping[Sample, float]) -> str:
    """Write samples in the Prometheus exposition format."""
    by_name: dict[str, list[str]] = {name: [] for name in HELP}
    for (name, labels), number in sorted(snapshot.items(), key=_sort_key):
        base = name if name in HELP else name.rpartition("_")[0]
        shown = ",".join(f'{key}="{_escape_label(value)}"' for key, value in labels)
        by_name[base].append(
            f"{name}{{{shown}}} {number:.10g}" if shown else f"{name} {number:.10g}"
        )
    lines = []
    for name, samples in by_name.items():
        if samples:
            kind, text = HELP[name]
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *samples]
    return "\n".join(lines) + "\n"


def _sort_key(item: tuple[Sample, float]) -> tuple[Any, ...]:
    """Sort by name and labels, the buckets of a histogram by their bound."""
    (name, labels), _ = item
    return name, [(k, float(v) if k == "le" else 0.0, v) for k, v in labels]


def _escape_label(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
