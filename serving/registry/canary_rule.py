"""Whether a canary is promoted, rolled back or watched on: a rule over a tally; pure.

It may be asked after every request. Of errors and of disagreements it decides by the exact binomial
distribution, and each further one that is looked at spends less of the permitted risk: the k-th
1/(k (k + 1)) of it, which adds up to all of it however often and however long one looks (a union
bound). Hence few requests decide nothing that they do not show, and a canary that only breaks is
gone after a few. Latencies are compared once there are enough requests, by intervals of order
statistics of their 95th percentiles. Knows no clock, no store and no traffic.

    judge(tally, Rule(min_agreement=0.98), elapsed_seconds=600).decision     # "wait"
"""

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import Field

from cluster.settings import Settings
from serving.registry.canary_metrics import Histogram, Tally

SLOW = 0.95  # the quantile of latencies that is compared


class Rule(Settings):
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


class Verdict(NamedTuple):
    """What to do with a canary, and why in words."""

    decision: Literal["wait", "promote", "rollback"]
    reason: str


class _Finding(NamedTuple):
    """What one limit says: it is kept (True), broken (False), or not known yet (None)."""

    kept: bool | None
    reason: str


def judge(tally: Tally, rule: Rule, elapsed_seconds: float) -> Verdict:
    """The verdict of `rule` on a canary that has run for `elapsed_seconds`."""
    findings = list(_findings(tally, rule))
    for finding in findings:
        if finding.kept is False:
            return Verdict("rollback", finding.reason)
    for finding in findings:
        if finding.kept is None:
            if elapsed_seconds < rule.max_seconds:
                return Verdict("wait", finding.reason)
            return Verdict(
                "rollback", f"not shown within {rule.max_seconds:g} seconds: {finding.reason}"
            )
    return Verdict("promote", "; ".join(finding.reason for finding in findings))


def _findings(tally: Tally, rule: Rule) -> list[_Finding]:
    side = tally.of_canary
    findings = [
        _limit(side.errors, side.requests, rule.max_error_rate, rule.risk, "requests failed")
    ]
    if rule.min_agreement is not None:
        limit = 1 - rule.min_agreement
        findings.append(
            _limit(
                tally.num_disagreed, tally.num_pairs, limit, rule.risk, "texts got another label"
            )
        )
    enough = side.requests >= rule.min_requests
    findings.append(
        _Finding(enough or None, f"{side.requests} of at least {rule.min_requests} requests")
    )
    if rule.max_p95_ratio is not None:
        findings.append(_latency(tally, rule.max_p95_ratio, rule.risk, enough))
    return findings


def _limit(events: int, trials: int, limit: float, risk: float, what: str) -> _Finding:
    """Whether events come at a rate below `limit`."""
    share = f" ({events / trials:.2%})" if trials else ""
    reason = f"{events} of {trials} {what}{share}, limit {limit:.4g}"
    if events and at_least(events, trials, limit) < risk / (events * (events + 1)):
        return _Finding(False, f"{reason}: certainly more")
    if at_most(events, trials, limit) < risk / ((events + 1) * (events + 2)):
        return _Finding(True, f"{reason}: certainly fewer")
    return _Finding(None, f"{reason}: not certain yet")


def _latency(tally: Tally, limit: float, risk: float, enough: bool) -> _Finding:
    """Whether the canary's p95 is at most `limit` times the live version's."""
    live, canary = tally.of_live.latencies, tally.of_canary.latencies
    live_low, live_high = interval(live, SLOW, risk)
    low, high = interval(canary, SLOW, risk)
    reason = (
        f"p95 {canary.quantile(SLOW) * 1000:.3g} ms, live {live.quantile(SLOW) * 1000:.3g} ms, "
        f"limit {limit:g} times"
    )
    if not enough or not len(live):
        return _Finding(None, f"{reason}: too few requests")
    if low > limit * live_high:
        return _Finding(False, f"{reason}: certainly more")
    if high <= limit * live_low:
        return _Finding(True, f"{reason}: certainly less")
    return _Finding(None, f"{reason}: not certain yet")


def interval(latencies: Histogram, share: float, risk: float) -> tuple[float, float]:
    """Seconds between which a quantile of all latencies to come lies, each end at `risk`.

    The ends are order statistics: how many of n latencies lie below the quantile is binomial, here
    in its normal approximation. The upper end is infinite while there are too few to bound it.
    """
    n = len(latencies)
    spread = NormalDist().inv_cdf(1 - risk) * math.sqrt(n * share * (1 - share))
    low, high = math.floor(n * share - spread), math.ceil(n * share + spread) + 1
    return (
        latencies.nth(low) if low >= 1 else 0.0,
        latencies.nth(high) if high <= n else math.inf,
    )


def at_most(events: int, trials: int, rate: float) -> float:
    """The chance of `events` or fewer in `trials` at `rate`, by the binomial distribution."""
    if events >= trials:
        return 1.0
    if events > trials * rate:
        return 1.0 - at_least(events + 1, trials, rate)
    return _falling(range(events, -1, -1), trials, rate)


def at_least(events: int, trials: int, rate: float) -> float:
    """The chance of `events` or more in `trials` at `rate`, by the binomial distribution."""
    if events <= 0:
        return 1.0
    if events <= trials * rate:
        return 1.0 - at_most(events - 1, trials, rate)
    return _falling(range(events, trials + 1), trials, rate)


def _falling(events: range, trials: int, rate: float) -> float:
    """The chances of `events` added up, from the likeliest until they change nothing."""
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    total = 0.0
    for k in events:
        choose = math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1)
        chance = math.exp(choose + k * log_rate + (trials - k) * log_rest)
        total += chance
        if chance <= total * 1e-17:
            break
    return total
