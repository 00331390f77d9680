"""How many replicas the load asks for; pure.

Serve asks every few seconds, with what each replica said of itself (`Replica`): the share of the
time that its engine computed, and how long requests waited for it. Delays and bounds are Serve's.
"""

import math
from statistics import fmean
from typing import Any

BUSY = 0.7  # of the time an engine computes, at most, where there are enough replicas
WAITED_SECONDS = 0.1  # for an engine, on average, at most
STEP = 2.0  # growth at once, at most


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """The number of replicas wanted, and no state. context: Serve's `AutoscalingContext`."""
    metrics = context.aggregated_metrics or {}
    busy = fmean((metrics.get("busy") or {"": 0.0}).values())
    waited = fmean((metrics.get("waited_seconds") or {"": 0.0}).values())
    return wanted(context.target_num_replicas, busy, waited), {}


def wanted(num_replicas: int, busy: float, waited_seconds: float) -> int:
    """Replicas for which engines would be busy less than `BUSY`.

    busy: mean over replicas, 0 to 1. Where requests wait too long, one more than there are.
    """
    now = max(1, num_replicas)
    number = math.ceil(now * busy / BUSY - 1e-9)
    if waited_seconds > WAITED_SECONDS:
        number = max(number, now + 1)
    return max(1, min(number, math.ceil(now * STEP)))
