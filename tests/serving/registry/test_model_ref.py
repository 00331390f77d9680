"""How a model is asked for: what parses, and what is refused with the way out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.registry.model_ref import (
    InvalidReference,
    ModelReference,
    check_alias,
    check_model_name,
    suggest_names,
)

FUZZED = settings(deadline=None)


@FUZZED
@given(
    st.from_regex(
        r"[a-z0-9][a-z0-9._-]{0,20}((:[1-9][0-9]{0,3})|(@[a-z][a-z0-9._-]{0,9}))?",
        fullmatch=True,
    )
)
def test_what_is_written_reads_back(text: str) -> None:
    assert str(ModelReference.parse(text)) == text


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
def test_other_words_are_answered_with_the_grammar(text: str) -> None:
    with pytest.raises(InvalidReference, match="NAME, NAME:VERSION or NAME@ALIAS"):
        ModelReference.parse(text)


@FUZZED
@given(st.text())
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = ModelReference.parse(text)
    except InvalidReference as error:
        assert "\n" not in str(error)
    else:
        assert check_model_name(reference.name) == reference.name
        assert "/" not in text


def test_live_is_no_alias_to_move() -> None:
    assert check_alias("best") == "best"
    with pytest.raises(InvalidReference, match="deploy the version instead"):
        check_alias("live")
    with pytest.raises(InvalidReference, match="is no alias"):
        check_alias("3")


def test_suggestions() -> None:
    assert suggest_names("sentimant", ["news", "sentiment"]) == "did you mean sentiment?"
    assert suggest_names("x", ["news", "sentiment"]) == "there is news, sentiment"
    assert suggest_names("x", []) == "there is none yet"
