"""What came of the requests of a load: latencies, statuses and failures; pure."""

import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """What came of all requests. num_sent: within the seconds of the measurement."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    num_sent: int = 0


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Milliseconds, by the name of the quantile; {} of nothing."""
    if not values:
        return {}
    ordered, last = sorted(values), len(values) - 1
    return {
        name: round(1000 * ordered[min(last, int(share * len(ordered)))], 3)
        for name, share in QUANTILES.items()
    }


def summary(tally: Tally, seconds: float, by_second: bool) -> dict[str, Any]:
    """What is reported. Throughput is of what was answered with 200 within the seconds."""
    outcomes = tally.outcomes
    served = [each for each in outcomes if each.status == 200]
    found: dict[str, Any] = {
        "seconds": seconds,
        "sent": tally.num_sent,
        "statuses": dict(Counter(str(each.status) for each in outcomes if each.status)),
        "failures": dict(tally.failures),
        "requests_per_second": sum(each.done <= seconds for each in served) / seconds,
        "milliseconds": quantiles([each.done - each.due for each in served]),
        "refused_milliseconds": quantiles(
            [each.done - each.due for each in outcomes if each.status == REFUSED]
        ),
        "late_milliseconds": quantiles([each.sent - each.due for each in outcomes if each.sent]),
    }
    if by_second:
        found["by_second"] = _by_second(outcomes)
    return found


def _by_second(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """By the second in which they were due: answered, refused, failed and the slowest."""
    held: dict[int, list[Outcome]] = {}
    for each in outcomes:
        held.setdefault(int(each.due), []).append(each)
    return [
        {
            "second": second,
            "answered": sum(each.status == 200 for each in of_second),
            "refused": sum(each.status == REFUSED for each in of_second),
            "failed": sum(each.status not in (200, REFUSED) for each in of_second),
            "max_milliseconds": round(1000 * max(o.done - o.due for o in of_second), 1),
        }
        for second, of_second in sorted(held.items())
    ]


def cpu_seconds() -> float:
    """Of this process, so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
