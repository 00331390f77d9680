"""The rule by which a canary is promoted, rolled back or watched further.

It may be evaluated after every request: errors and disagreements are tested by the exact binomial
distribution, and each test spends a part of the permitted risk (see `_check_rate`). Latencies are
compared once there are enough requests, by confidence intervals of their 95th percentiles.

    judge_canary(metrics, CanaryRule(min_agreement=0.98), elapsed_seconds=600).action     # "wait"
"""

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import Field

from cluster.settings import Settings
from serving.registry.canary_metrics import CanaryMetrics, LatencyHistogram

LATENCY_QUANTILE = 0.95  # the quantile of latencies that is compared


class CanaryRule(Settings):
    """When a canary is good enough, and when it is not."""

    min_requests: int = Field(500, ge=1, description="of the canary before it is promoted")
    max_error_rate: float = Field(
        0.01, gt=0, lt=1, description="share of the canary's requests that may fail"
    )
    max_p95_ratio: float | None = Field(
        1.5, gt=1, description="of the canary's 95th percentile of latency to the live version's"
    )
    min_agreement: float | None = Field(
        None, gt=0, lt=1, description="share of shadowed texts that get the live version's label"
    )
    max_seconds: float = Field(
        86400, gt=0, description="after which a canary that has not shown itself is rolled back"
    )
    risk: float = Field(
        0.01, gt=0, le=0.2, description="chance that a limit is judged wrongly, each way"
    )


class CanaryDecision(NamedTuple):
    """What to do with a canary, and why."""

    action: Literal["wait", "promote", "rollback"]
    reason: str


class _LimitCheck(NamedTuple):
    """The result for one limit: kept (True), broken (False), or undecided (None)."""

    kept: bool | None
    reason: str


def judge_canary(
    metrics: CanaryMetrics, rule: CanaryRule, elapsed_seconds: float
) -> CanaryDecision:
    """Decide about a canary that has run for `elapsed_seconds`."""
    checks = list(_check_limits(metrics, rule))
    for check in checks:
        if check.kept is False:
            return CanaryDecision("rollback", check.reason)
    for check in checks:
        if check.kept is None:
            if elapsed_seconds < rule.max_seconds:
                return CanaryDecision("wait", check.reason)
            return CanaryDecision(
                "rollback", f"not shown within {rule.max_seconds:g} seconds: {check.reason}"
            )
    return CanaryDecision("promote", "; ".join(check.reason for check in checks))


def _check_limits(metrics: CanaryMetrics, rule: CanaryRule) -> list[_LimitCheck]:
    canary, limit, risk = metrics.canary_metrics, rule.max_error_rate, rule.risk
    checks = [_check_rate(canary.errors, canary.requests, limit, risk, "requests failed")]
    if rule.min_agreement is not None:
        differ, limit = metrics.num_disagreed, 1 - rule.min_agreement
        what = "texts got another label"
        checks.append(_check_rate(differ, metrics.num_pairs, limit, risk, what))
    enough = canary.requests >= rule.min_requests
    checks.append(
        _LimitCheck(enough or None, f"{canary.requests} of at least {rule.min_requests} requests")
    )
    if rule.max_p95_ratio is not None:
        checks.append(_check_latency(metrics, rule.max_p95_ratio, rule.risk, enough))
    return checks


def _check_rate(events: int, trials: int, limit: float, risk: float, what: str) -> _LimitCheck:
    """Test whether events occur at a rate below `limit`."""
    # A fixed threshold would be crossed by chance sooner or later, because the test is repeated
    # after every request. So the k-th event may be tested at risk / (k (k + 1)) only: over all k
    # these add up to `risk`, which bounds a wrong decision however often and however long one looks
    # (a union bound). A canary that only fails is gone after a few requests all the same.
    share = f" ({events / trials:.2%})" if trials else ""
    reason = f"{events} of {trials} {what}{share}, limit {limit:.4g}"
    if events and binomial_sf(events, trials, limit) < risk / (events * (events + 1)):
        return _LimitCheck(False, f"{reason}: certainly more")
    if binomial_cdf(events, trials, limit) < risk / ((events + 1) * (events + 2)):
        return _LimitCheck(True, f"{reason}: certainly fewer")
    return _LimitCheck(None, f"{reason}: not certain yet")


def _check_latency(metrics: CanaryMetrics, limit: float, risk: float, enough: bool) -> _LimitCheck:
    """Test whether the canary's p95 is at most `limit` times the live version's."""
    live, canary = metrics.live_metrics.latencies, metrics.canary_metrics.latencies
    live_low, live_high = quantile_interval(live, LATENCY_QUANTILE, risk)
    low, high = quantile_interval(canary, LATENCY_QUANTILE, risk)
    p95_live, p95 = (1000 * each.quantile(LATENCY_QUANTILE) for each in (live, canary))
    reason = f"p95 {p95:.3g} ms, live {p95_live:.3g} ms, limit {limit:g} times"
    if not enough or not len(live):
        return _LimitCheck(None, f"{reason}: too few requests")
    if low > limit * live_high:
        return _LimitCheck(False, f"{reason}: certainly more")
    if high <= limit * live_low:
        return _LimitCheck(True, f"{reason}: certainly less")
    return _LimitCheck(None, f"{reason}: not certain yet")


def quantile_interval(
    latencies: LatencyHistogram, share: float, risk: float
) -> tuple[float, float]:
    """Return a confidence interval of a quantile in seconds, each end at `risk`.

    The ends are order statistics: how many of n latencies lie below the quantile is binomial, here
    in its normal approximation. The upper end is infinite while there are too few to bound it.
    """
    n = len(latencies)
    spread = NormalDist().inv_cdf(1 - risk) * math.sqrt(n * share * (1 - share))
    low, high = math.floor(n * share - spread), math.ceil(n * share + spread) + 1
    return (
        latencies.nth_smallest(low) if low >= 1 else 0.0,
        latencies.nth_smallest(high) if high <= n else math.inf,
    )


def binomial_cdf(events: int, trials: int, rate: float) -> float:
    """Return the chance of `events` or fewer in `trials` at `rate`."""
    if events >= trials:
        return 1.0
    if events > trials * rate:
        return 1.0 - binomial_sf(events + 1, trials, rate)
    return _sum_probabilities(range(events, -1, -1), trials, rate)


def binomial_sf(events: int, trials: int, rate: float) -> float:
    """Return the chance of `events` or more in `trials` at `rate`."""
    if events <= 0:
        return 1.0
    if events <= trials * rate:
        return 1.0 - binomial_cdf(events - 1, trials, rate)
    return _sum_probabilities(range(events, trials + 1), trials, rate)


def _sum_probabilities(events: range, trials: int, rate: float) -> float:
    """Add up the chances of `events`, the likeliest first, until they change nothing."""
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    total = 0.0
    for k in events:
        choose = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        chance = math.exp(choose + k * log_rate + (trials - k) * log_rest)
        total += chance
        if chance <= total * 1e-17:
            break
    return total
