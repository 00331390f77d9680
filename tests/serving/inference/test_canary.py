"""Canaries: shares are exact, versions and aliases are not on trial, answers are compared."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.inference.canary import (
    RouteDecision,
    TrafficSequence,
    _comparable_labels,
    choose_version,
)
from serving.interface import Prediction
from serving.registry.canary_rule import CanaryRule
from serving.registry.model_ref import ModelNotFound, ModelReference
from serving.registry.state import Canary, ModelState, ModelVersion
from tests.support.fake_models import fake_model_info

FUZZED = settings(deadline=None)
SHARES = st.floats(0, 1)


def state(share: float | None = None, shadow: bool = False, started: float = 1.0) -> ModelState:
    canary = None
    if share is not None:
        canary = Canary(version="4", share=share, shadow=shadow, rule=CanaryRule(), started=started)
    return ModelState(
        name="sentiment",
        versions={each: ModelVersion(created=0.0, seal="0" * 64) for each in ("1", "3", "4")},
        aliases={"live": "3", "best": "1"},
        canary=canary,
    )


BARE = ModelReference.parse("sentiment")


class TestShares:
    @FUZZED
    @given(share=SHARES, before=st.integers(0, 3000), requests=st.integers(1, 3000))
    @example(share=0.1, before=0, requests=1000)
    def test_any_run_of_requests_keeps_the_share(
        self, share: float, before: int, requests: int
    ) -> None:
        traffic, asked = TrafficSequence(), state(share)
        draws = [traffic.next_draw("sentiment") for _ in range(before + requests)][before:]
        to_canary = sum(choose_version(asked, BARE, draw).version == "4" for draw in draws)
        assert abs(to_canary - share * requests) <= 5  # luck would miss by sqrt(requests) / 2

    def test_a_share_of_nothing_and_one_of_all_are_just_that(self) -> None:
        traffic = TrafficSequence()
        draws = [traffic.next_draw("sentiment") for _ in range(1000)]
        assert {choose_version(state(0.0), BARE, draw) for draw in draws} == {RouteDecision("3")}
        assert {choose_version(state(1.0), BARE, draw) for draw in draws} == {RouteDecision("4")}

    def test_clients_that_take_turns_do_not_part_with_the_share(self) -> None:
        """An even and an odd client of an even split each meet both versions, half and half."""
        traffic, asked = TrafficSequence(), state(0.5)
        met = [
            choose_version(asked, BARE, traffic.next_draw("sentiment")).version for _ in range(2000)
        ]
        assert abs(met[::2].count("4") - 500) <= 3

    def test_names_have_turns_of_their_own(self) -> None:
        apart, together = TrafficSequence(), TrafficSequence()
        alone = [apart.next_draw("sentiment") for _ in range(10)]
        assert [
            (together.next_draw("sentiment"), together.next_draw("news"))[0] for _ in range(10)
        ] == alone

    def test_threads_share_the_turns(self) -> None:
        traffic = TrafficSequence()
        with ThreadPoolExecutor(8) as pool:
            draws = list(pool.map(lambda _: traffic.next_draw("sentiment"), range(4000)))
        assert len(set(draws)) == 4000
        assert abs(sum(draw < 0.25 for draw in draws) - 1000) <= 3


class TestShadow:
    def test_the_live_version_answers_and_the_canary_gets_a_copy(self) -> None:
        assert choose_version(state(0.5, shadow=True), BARE, 0.4) == RouteDecision("3", shadow="4")
        assert choose_version(state(0.5, shadow=True), BARE, 0.6) == RouteDecision("3")

    @FUZZED
    @given(share=SHARES, draw=st.floats(0, 1, exclude_max=True))
    def test_nobody_is_ever_answered_by_a_shadow(self, share: float, draw: float) -> None:
        assert choose_version(state(share, shadow=True), BARE, draw).version == "3"


class TestAgreement:
    def test_versions_agree_where_their_answers_do_whatever_is_likeliest(self) -> None:
        live = fake_model_info("sentiment", "1")
        canary = fake_model_info("sentiment", "2", thresholds={"positive": 0.35})
        unsure, sure = Prediction((0.6, 0.4), (0.0,) * 2), Prediction((0.2, 0.8), (0.0,) * 2)
        assert _comparable_labels(unsure, unsure, live, canary) == ("negative", "positive")
        assert _comparable_labels(sure, unsure, live, canary) == ("positive", "positive")

    def test_of_several_labels_the_whole_answer_counts(self) -> None:
        live = fake_model_info("topics", "1")
        canary = fake_model_info("topics", "2", thresholds={"cast": 0.3})
        both = Prediction((0.7, 0.4, 0.1), (0.0,) * 3)
        assert _comparable_labels(both, both, live, live) == ("same", "same")
        assert _comparable_labels(both, both, live, canary) == ("same", "different")

    def test_numbers_agree_within_a_tolerance(self) -> None:
        stars = fake_model_info("stars")
        one, near, far = (Prediction((value,), (value,)) for value in (3.0, 3.02, 4.0))
        assert _comparable_labels(one, near, stars, stars) == ("same", "same")
        assert _comparable_labels(one, far, stars, stars) == ("same", "different")


class TestReferences:
    @pytest.mark.parametrize("draw", [0.0, 0.999])
    @pytest.mark.parametrize(
        ("text", "version"),
        [
            ("sentiment:1", "1"),
            ("sentiment:4", "4"),
            ("sentiment@best", "1"),
            ("sentiment@live", "3"),
        ],
    )
    def test_a_version_or_an_alias_is_not_on_trial(
        self, text: str, version: str, draw: float
    ) -> None:
        assert choose_version(state(1.0), ModelReference.parse(text), draw) == RouteDecision(
            version
        )

    @pytest.mark.parametrize(
        ("text", "way_out"),
        [
            ("sentiment:2", "sentiment:2: no such version; there is 1, 3, 4"),
            ("sentiment@bets", "sentiment@bets: no such alias; did you mean best?"),
        ],
    )
    def test_what_is_not_there_is_named(self, text: str, way_out: str) -> None:
        with pytest.raises(ModelNotFound, match=way_out.replace("?", "[?]")):
            choose_version(state(), ModelReference.parse(text), 0.0)

    def test_a_name_without_a_live_version_says_how_to_have_one(self) -> None:
        with pytest.raises(ModelNotFound, match="no version is live; deploy one of sentiment:1"):
            choose_version(state().copy_with(aliases={}), BARE, 0.0)
