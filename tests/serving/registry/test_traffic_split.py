"""Traffic: shares are kept exactly, clients stay where they are, references mean what they say."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.registry.canary_rule import Rule
from serving.registry.model_ref import (
    BadReference,
    NoModel,
    Reference,
    checked_alias,
    checked_name,
    suggestion,
)
from serving.registry.state import Canary, State, Version
from serving.registry.traffic_split import Choice, Turns, route, sticky

FUZZED = settings(deadline=None)
SHARES = st.floats(0, 1)


def state(share: float | None = None, shadow: bool = False, started: float = 1.0) -> State:
    canary = None
    if share is not None:
        canary = Canary(version="4", share=share, shadow=shadow, rule=Rule(), started=started)
    return State(
        name="sentiment",
        versions={each: Version(created=0.0, seal="0" * 64) for each in ("1", "3", "4")},
        aliases={"live": "3", "best": "1"},
        canary=canary,
    )


BARE = Reference.parse("sentiment")


class TestShares:
    @FUZZED
    @given(share=SHARES, before=st.integers(0, 3000), requests=st.integers(1, 3000))
    @example(share=0.1, before=0, requests=1000)
    def test_any_run_of_requests_keeps_the_share(
        self, share: float, before: int, requests: int
    ) -> None:
        turns, asked = Turns(), state(share)
        draws = [turns.next("sentiment") for _ in range(before + requests)][before:]
        to_canary = sum(route(asked, BARE, draw).version == "4" for draw in draws)
        assert abs(to_canary - share * requests) <= 5  # luck would miss by sqrt(requests) / 2

    def test_a_share_of_nothing_and_one_of_all_are_just_that(self) -> None:
        turns = Turns()
        draws = [turns.next("sentiment") for _ in range(1000)]
        assert {route(state(0.0), BARE, draw) for draw in draws} == {Choice("3")}
        assert {route(state(1.0), BARE, draw) for draw in draws} == {Choice("4")}

    def test_clients_that_take_turns_do_not_part_with_the_share(self) -> None:
        """An even and an odd client of an even split each meet both versions, half and half."""
        turns, asked = Turns(), state(0.5)
        met = [route(asked, BARE, turns.next("sentiment")).version for _ in range(2000)]
        assert abs(met[::2].count("4") - 500) <= 3

    def test_names_have_turns_of_their_own(self) -> None:
        apart, together = Turns(), Turns()
        alone = [apart.next("sentiment") for _ in range(10)]
        assert [(together.next("sentiment"), together.next("news"))[0] for _ in range(10)] == alone

    def test_threads_share_the_turns(self) -> None:
        turns = Turns()
        with ThreadPoolExecutor(8) as pool:
            draws = list(pool.map(lambda _: turns.next("sentiment"), range(4000)))
        assert len(set(draws)) == 4000
        assert abs(sum(draw < 0.25 for draw in draws) - 1000) <= 3


class TestSticky:
    @FUZZED
    @given(client=st.text(), smaller=SHARES, larger=SHARES)
    def test_a_larger_share_only_adds_clients(
        self, client: str, smaller: float, larger: float
    ) -> None:
        smaller, larger = sorted((smaller, larger))
        draw = sticky(client, state(smaller))
        assert draw == sticky(client, state(larger))
        if route(state(smaller), BARE, draw).version == "4":
            assert route(state(larger), BARE, draw).version == "4"

    def test_many_clients_split_by_the_share(self) -> None:
        draws = [sticky(f"client {number}", state(0.1)) for number in range(10_000)]
        assert abs(sum(draw < 0.1 for draw in draws) - 1000) < 5 * math.sqrt(900)

    def test_another_canary_meets_other_clients(self) -> None:
        first, second = state(0.1, started=1.0), state(0.1, started=2.0)
        clients = [str(number) for number in range(1000)]
        both = [sticky(each, first) < 0.1 and sticky(each, second) < 0.1 for each in clients]
        assert sum(both) < 40  # 10 by chance


class TestShadow:
    def test_the_live_version_answers_and_the_canary_gets_a_copy(self) -> None:
        assert route(state(0.5, shadow=True), BARE, 0.4) == Choice("3", shadow="4")
        assert route(state(0.5, shadow=True), BARE, 0.6) == Choice("3")

    @FUZZED
    @given(share=SHARES, draw=st.floats(0, 1, exclude_max=True))
    def test_nobody_is_ever_answered_by_a_shadow(self, share: float, draw: float) -> None:
        assert route(state(share, shadow=True), BARE, draw).version == "3"


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
        assert route(state(1.0), Reference.parse(text), draw) == Choice(version)

    @pytest.mark.parametrize(
        ("text", "way_out"),
        [
            ("sentiment:2", "sentiment:2: no such version; there is 1, 3, 4"),
            ("sentiment@bets", "sentiment@bets: no such alias; did you mean best?"),
        ],
    )
    def test_what_is_not_there_is_named(self, text: str, way_out: str) -> None:
        with pytest.raises(NoModel, match=way_out.replace("?", "[?]")):
            route(state(), Reference.parse(text), 0.0)

    def test_a_name_without_a_live_version_says_how_to_have_one(self) -> None:
        with pytest.raises(NoModel, match="no version is live; deploy one of sentiment:1"):
            route(state().changed(aliases={}), BARE, 0.0)

    @FUZZED
    @given(
        st.from_regex(
            r"[a-z0-9][a-z0-9._-]{0,20}((:[1-9][0-9]{0,3})|(@[a-z][a-z0-9._-]{0,9}))?",
            fullmatch=True,
        )
    )
    def test_what_is_written_reads_back(self, text: str) -> None:
        assert str(Reference.parse(text)) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Sentiment",
            "a b",
            "../etc",
            "a/b",
            "_states",
            "a:",
            "a:0",
            "a:x",
            "a@",
            "a@3",
            "a:1@b",
        ],
    )
    def test_other_words_are_answered_with_the_grammar(self, text: str) -> None:
        with pytest.raises(BadReference, match="NAME, NAME:VERSION or NAME@ALIAS"):
            Reference.parse(text)

    @FUZZED
    @given(st.text())
    def test_any_text_is_a_reference_or_refused(self, text: str) -> None:
        try:
            reference = Reference.parse(text)
        except BadReference as error:
            assert "\n" not in str(error)
        else:
            assert checked_name(reference.name) == reference.name
            assert "/" not in text

    def test_live_is_no_alias_to_move(self) -> None:
        assert checked_alias("best") == "best"
        with pytest.raises(BadReference, match="deploy the version instead"):
            checked_alias("live")
        with pytest.raises(BadReference, match="is no alias"):
            checked_alias("3")

    def test_suggestions(self) -> None:
        assert suggestion("sentimant", ["news", "sentiment"]) == "did you mean sentiment?"
        assert suggestion("x", ["news", "sentiment"]) == "there is news, sentiment"
        assert suggestion("x", []) == "there is none yet"
