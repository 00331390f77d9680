"""The results of a load: latencies, statuses and failures."""

import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}
REFUSED = 429


@dataclass(slots=True)
class Outcome:
    """One request. Times in seconds since the start; status 0 where no answer came."""

    due: float
    sent: float
    done: float
    status: int


@dataclass
class Tally:
    """The outcomes of all requests. num_sent: within the seconds of the measurement."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    num_sent: int = 0


def latency_quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return milliseconds by the name of the quantile; {} for no values. values: in seconds."""
    if not values:
        return {}
    ordered, last = sorted(values), len(values) - 1
    return {
        name: round(1000 * ordered[min(last, int(share * len(ordered)))], 3)
        for name, share in QUANTILES.items()
    }


def summarize_load(tally: Tally, seconds: float, by_second: bool) -> dict[str, Any]:
    """Summarize a load. Throughput counts responses of 200 within the seconds."""
    outcomes = tally.outcomes
    served = [each for each in outcomes if each.status == 200]
    results: dict[str, Any] = {
        "seconds": seconds,
        "sent": tally.num_sent,
        "statuses": dict(Counter(str(each.status) for each in outcomes if each.status)),
        "failures": dict(tally.failures),
        "requests_per_second": sum(each.done <= seconds for each in served) / seconds,
        "milliseconds": latency_quantiles([each.done - each.due for each in served]),
        "refused_milliseconds": latency_quantiles(
            [each.done - each.due for each in outcomes if each.status == REFUSED]
        ),
        "late_milliseconds": latency_quantiles(
            [each.sent - each.due for each in outcomes if each.sent]
        ),
    }
    results["outage"] = describe_outage(outcomes, seconds)
    if by_second:
        results["by_second"] = _summarize_by_second(outcomes)
    return results


def describe_outage(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """Describe when requests failed, and how long nothing was answered.

    seconds_out: from when the first failed request was due to when the last one was, 0 for none or
    one. longest_gap_seconds: between answers of 200, the start and the end of the load included.
    """
    failed = sorted(each.due for each in outcomes if each.status != 200)
    answered = [each.done for each in outcomes if each.status == 200]
    moments = sorted([0.0, *answered, seconds])
    return {
        "first_failure": round(failed[0], 3) if failed else 0.0,
        "seconds_out": round(failed[-1] - failed[0], 3) if failed else 0.0,
        "longest_gap_seconds": round(max(b - a for a, b in pairwise(moments)), 3),
    }


def _summarize_by_second(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Count by the second in which requests were due: answered, refused, failed, slowest."""
    by_second: dict[int, list[Outcome]] = {}
    for each in outcomes:
        by_second.setdefault(int(each.due), []).append(each)
    return [
        {
            "second": second,
            "answered": sum(each.status == 200 for each in group),
            "refused": sum(each.status == REFUSED for each in group),
            "failed": sum(each.status not in (200, REFUSED) for each in group),
            "max_milliseconds": round(1000 * max(each.done - each.due for each in group), 1),
        }
        for second, group in sorted(by_second.items())
    ]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
