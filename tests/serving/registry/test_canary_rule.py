"""Judging a canary: counts that add up, and verdicts that few requests cannot bring about."""

import math
import pickle
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.settings import SettingsError, validate_settings
from serving.registry.canary_metrics import (
    PER_OCTAVE,
    CanaryMetrics,
    LatencyHistogram,
    VariantMetrics,
    merge_metrics,
)
from serving.registry.canary_rule import (
    CanaryDecision,
    CanaryRule,
    binomial_cdf,
    binomial_sf,
    judge_canary,
    quantile_interval,
)

HALF_A_BUCKET = 2 ** (0.5 / PER_OCTAVE) * (1 + 1e-9)

FUZZED = settings(deadline=None)
SECONDS = st.floats(1e-5, 100)
SIDES = st.lists(st.tuples(SECONDS, st.booleans()), max_size=20)
LABELS = st.sampled_from(["negative", "neutral", "positive"])
PAIRS = st.lists(st.tuples(LABELS, LABELS), max_size=20)


def side(requests: list[tuple[float, bool]]) -> VariantMetrics:
    counted = VariantMetrics()
    for seconds, failed in requests:
        counted.record_request(seconds, failed=failed)
    return counted


def canary_metrics(
    live: list[tuple[float, bool]] | None = None,
    canary: list[tuple[float, bool]] | None = None,
    pairs: list[tuple[str, str]] | None = None,
) -> CanaryMetrics:
    counted = CanaryMetrics("sentiment", "3", "4", 1.0, side(live or []), side(canary or []))
    for pair in pairs or []:
        counted.record_pair(*pair)
    return counted


TALLIES = st.builds(canary_metrics, SIDES, SIDES, PAIRS)


def of(errors: int, requests: int, seconds: float = 0.010, live: int = 2000) -> CanaryMetrics:
    """A canary with so many errors among its requests, beside a live version of 10 ms."""
    counted = canary_metrics()
    counted.live_metrics = VariantMetrics(live, 0, LatencyHistogram())
    counted.canary_metrics = VariantMetrics(requests, errors, LatencyHistogram())
    draw = random.Random(0)
    for _ in range(live):
        counted.live_metrics.latencies.record_latency(0.010 * draw.lognormvariate(0, 0.2))
    for _ in range(requests - errors):
        counted.canary_metrics.latencies.record_latency(seconds * draw.lognormvariate(0, 0.2))
    return counted


class TestTally:
    @FUZZED
    @given(TALLIES, TALLIES, TALLIES)
    def test_merging_does_not_care_for_the_order(
        self, a: CanaryMetrics, b: CanaryMetrics, c: CanaryMetrics
    ) -> None:
        assert (a + b) + c == a + (b + c) == merge_metrics([c, b, a])

    @FUZZED
    @given(SIDES, SIDES, PAIRS, PAIRS)
    def test_merging_is_counting_all_in_one_place(
        self, here: Any, there: Any, some: Any, others: Any
    ) -> None:
        together = canary_metrics(here + there, there, some + others)
        assert canary_metrics(here, there, some) + canary_metrics(there, [], others) == together
        assert together.num_pairs == len(some) + len(others)

    @FUZZED
    @given(TALLIES)
    def test_it_goes_through_json(self, counted: CanaryMetrics) -> None:
        assert pickle.loads(pickle.dumps(counted)) == counted

    def test_tallies_of_two_canaries_do_not_add_up(self) -> None:
        with pytest.raises(ValueError, match="do not add up"):
            canary_metrics() + CanaryMetrics("sentiment", "3", "5", 1.0)

    @FUZZED
    @given(st.lists(SECONDS, min_size=1, max_size=200), st.floats(0.01, 1))
    def test_a_quantile_is_that_of_the_latencies(self, all_seconds: list[float], q: float) -> None:
        counted = LatencyHistogram()
        for seconds in all_seconds:
            counted.record_latency(seconds)
        exact = sorted(all_seconds)[max(1, math.ceil(q * len(all_seconds))) - 1]
        assert exact / HALF_A_BUCKET <= counted.quantile(q) <= exact * HALF_A_BUCKET

    @pytest.mark.parametrize("seconds", [0.0, -1.0, 1e12, math.inf])
    def test_any_clock_is_counted(self, seconds: float) -> None:
        counted = LatencyHistogram()
        counted.record_latency(seconds)
        assert len(counted) == 1
        assert 0 < counted.quantile(0.5) < math.inf
        assert LatencyHistogram().quantile(0.5) == 0

    def test_the_matrix_has_a_row_for_what_the_live_version_said(self) -> None:
        counted = canary_metrics(pairs=[("negative", "positive"), ("positive", "positive")])
        assert counted.num_disagreed == 1
        assert counted.confusion_matrix(("positive",)) == (
            ("positive", "negative"),
            [[1, 0], [1, 0]],
        )


class TestChances:
    @FUZZED
    @given(trials=st.integers(0, 60), events=st.integers(-1, 61), rate=st.sampled_from([1, 10, 95]))
    def test_they_are_the_binomial_distribution(self, trials: int, events: int, rate: int) -> None:
        exact = Fraction(rate, 100)
        chances = [
            math.comb(trials, k) * exact**k * (1 - exact) ** (trials - k) for k in range(trials + 1)
        ]
        below = sum(chances[: max(0, events + 1)])
        from_there = sum(chances[max(0, events) :])
        assert binomial_sf(events, trials, rate / 100) == pytest.approx(float(from_there), rel=1e-9)
        if events >= 0:
            assert binomial_cdf(events, trials, rate / 100) == pytest.approx(float(below), rel=1e-9)

    def test_they_stay_chances_in_the_millions(self) -> None:
        assert binomial_cdf(10_000, 1_000_000, 0.01) == pytest.approx(0.5, abs=0.01)
        assert 0 < binomial_sf(10_700, 1_000_000, 0.01) < 1e-10

    @pytest.mark.parametrize("n", [100, 1000])
    def test_an_interval_holds_the_quantile(self, n: int) -> None:
        draw, missed = random.Random(n), 0
        for _ in range(300):
            counted = LatencyHistogram()
            for _ in range(n):
                counted.record_latency(draw.expovariate(1))
            low, high = quantile_interval(counted, 0.95, risk=0.05)
            missed += not low / HALF_A_BUCKET <= -math.log(0.05) <= high * HALF_A_BUCKET
        assert missed <= 45  # 30 by the risk at both ends


class TestVerdicts:
    def test_a_sound_canary_is_promoted_once_it_has_shown_it(self) -> None:
        decision = judge_canary(of(errors=0, requests=2000), CanaryRule(), 60)
        assert decision.action == "promote"
        assert "0 of 2000 requests failed" in decision.reason
        assert "p95" in decision.reason

    @pytest.mark.parametrize("requests", [0, 1, 10, 100, 499])
    def test_few_requests_promote_nothing(self, requests: int) -> None:
        assert judge_canary(of(errors=0, requests=requests), CanaryRule(), 60).action == "wait"

    @pytest.mark.parametrize("requests", [1, 2, 10, 50])
    def test_one_failure_decides_nothing(self, requests: int) -> None:
        assert judge_canary(of(errors=1, requests=requests), CanaryRule(), 60).action == "wait"

    def test_a_canary_that_only_fails_is_gone_after_a_few(self) -> None:
        verdicts = [
            judge_canary(of(errors=n, requests=n), CanaryRule(), 1).action for n in range(1, 5)
        ]
        assert verdicts[-1] == "rollback"
        assert "promote" not in verdicts

    def test_errors_beyond_the_limit_roll_back_however_many_went_well(self) -> None:
        decision = judge_canary(of(errors=60, requests=3000), CanaryRule(), 60)
        assert decision == CanaryDecision(
            "rollback", "60 of 3000 requests failed (2.00%), limit 0.01: certainly more"
        )

    def test_an_error_rate_at_the_limit_is_waited_on_and_then_rolled_back(self) -> None:
        counted, rule = of(errors=20, requests=2000), CanaryRule(max_seconds=100)
        assert judge_canary(counted, rule, 99).action == "wait"
        late = judge_canary(counted, rule, 100)
        assert late.action == "rollback"
        assert "not shown within 100 seconds" in late.reason

    def test_a_slow_canary_is_rolled_back(self) -> None:
        decision = judge_canary(of(errors=0, requests=2000, seconds=0.020), CanaryRule(), 60)
        assert decision.action == "rollback"
        assert decision.reason.startswith("p95 ")
        assert (
            judge_canary(
                of(errors=0, requests=2000, seconds=0.020), CanaryRule(max_p95_ratio=None), 60
            ).action
            == "promote"
        )

    def test_no_live_requests_leave_nothing_to_compare_with(self) -> None:
        assert judge_canary(of(errors=0, requests=2000, live=0), CanaryRule(), 60).action == "wait"

    def test_agreement_is_asked_for_and_shown(self) -> None:
        rule = CanaryRule(min_agreement=0.95)
        counted = of(errors=0, requests=2000)
        assert judge_canary(counted, rule, 60).action == "wait"
        counted.pairs.update({("a", "a"): 1990, ("a", "b"): 10})
        assert judge_canary(counted, rule, 60).action == "promote"
        counted.pairs.update({("a", "b"): 300})
        decision = judge_canary(counted, rule, 60)
        assert decision.action == "rollback"
        assert "310 of 2300 texts got another label" in decision.reason

    def test_looking_after_every_request_rolls_back_few_that_keep_the_limit(self) -> None:
        """At the limit itself the risk is 1%; a sum over looks would make it many times that."""
        rule, wrong, canaries = CanaryRule(max_p95_ratio=None), 0, 200
        draw = random.Random(1)
        for _ in range(canaries):
            counted = canary_metrics()
            for _ in range(1000):
                failed = draw.random() < rule.max_error_rate
                counted.canary_metrics.requests += 1
                counted.canary_metrics.errors += failed
                if failed and judge_canary(counted, rule, 0).action == "rollback":
                    wrong += 1
                    break
        assert wrong <= 8  # 2 by the risk

    @FUZZED
    @given(
        errors=st.integers(0, 40),
        requests=st.integers(0, 3000),
        seconds=st.floats(0.001, 0.1),
        elapsed=st.floats(0, 1e5),
    )
    def test_more_errors_never_help(
        self, errors: int, requests: int, seconds: float, elapsed: float
    ) -> None:
        order = {"rollback": 0, "wait": 1, "promote": 2}
        errors = min(errors, requests)
        counted = canary_metrics()
        counted.canary_metrics = VariantMetrics(requests, errors)
        rule = CanaryRule(max_p95_ratio=None)
        before = judge_canary(counted, rule, elapsed)
        counted.canary_metrics = VariantMetrics(requests, min(errors + 1, requests))
        after = judge_canary(counted, rule, elapsed)
        assert order[after.action] <= order[before.action]
        assert before.reason and after.reason

    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"max_p95_ratio": 1.0}, "max_p95_ratio = 1.0: .* greater than 1"),
            ({"max_error_rate": 0}, "max_error_rate = 0: .* greater than 0"),
            ({"min_request": 5}, "min_request: no such setting; did you mean min_requests"),
        ],
    )
    def test_an_impossible_rule_is_refused(self, settings: dict[str, Any], error: str) -> None:
        with pytest.raises(SettingsError, match=error):
            validate_settings(CanaryRule, settings, "rule")
