"""Cleanings: what a reader of the page would read, for any text at all."""

import time
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.blank_texts import BLANK, MARKUP_ONLY, VISIBLE
from trainers.data.cleaning import (
    CLEANINGS,
    MAX_CHARACTERS,
    clean_text,
    is_blank,
    keep_unchanged,
    text_v1,
)

ANY_TEXT = st.text(st.characters(exclude_categories=[]))
MARKUP = st.lists(
    st.sampled_from(["<br />", "<b>", "</b>", "<p class='x'>", "&lt;", "&amp;", "&#0;", "<3", "<"])
    | ANY_TEXT
).map("".join)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Good.<br /><br />Bad.", "Good. Bad."),
        ("one<BR>two<br/>three", "one two three"),
        ("<p>one</p><p class='a b'>two</p>", "one two"),
        ("un<b>believ</b>able", "unbelievable"),
        ('see <a href="http://x.org/?a=1&b=2">this</a>!', "see this!"),
        ("a <!-- hidden --> b<!DOCTYPE html>c", "a b c"),
        ("I <3 it, a < b and c > d", "I <3 it, a < b and c > d"),
        ("if x<b and c>d", "if x<b and c>d"),
        ("<grin> <brick>", "<grin> <brick>"),
        ("AT&amp;T &lt;b&gt; &eacute;&nbsp;x", "AT&T <b> é x"),
        ("cafe\u0301", "café"),
        ("a\x00b\x07\u0085c", "a b c"),
        (" \t one\u2003two\r\n\u2028 ", "one two"),
        ("half \ud83d surrogate", "half \ufffd surrogate"),
        ("", ""),
        ("<br />", ""),
    ],
)
def test_text_v1_reads_as_a_person_does(raw: str, clean: str) -> None:
    assert text_v1(raw) == clean


@given(ANY_TEXT | MARKUP)
@example("<<b>b>")
@example("&#xD800;&#1;")
def test_text_v1_gives_one_composed_line_for_any_text(raw: str) -> None:
    clean = text_v1(raw)
    assert clean == " ".join(clean.split())
    assert unicodedata.is_normalized("NFC", clean)
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in clean)


@given(ANY_TEXT.filter(lambda text: "<" not in text and "&" not in text))
def test_text_v1_is_idempotent_without_markup(raw: str) -> None:
    assert text_v1(text_v1(raw)) == text_v1(raw)


@given(ANY_TEXT)
def test_none_changes_nothing(raw: str) -> None:
    assert keep_unchanged(raw) == raw


@pytest.mark.parametrize("text", BLANK)
@pytest.mark.parametrize("cleaning", list(CLEANINGS))
def test_what_nobody_sees_is_nothing_under_any_cleaning(text: str, cleaning: str) -> None:
    assert is_blank(text) and clean_text(cleaning, text) == ""


@pytest.mark.parametrize("text", MARKUP_ONLY)
def test_the_cleaning_decides_whether_markup_is_a_text(text: str) -> None:
    assert not is_blank(text)
    assert clean_text("text-v1", text) == "" and clean_text("none", text) == text


@pytest.mark.parametrize("text", VISIBLE)
def test_what_somebody_sees_is_a_text(text: str) -> None:
    assert not is_blank(text)
    assert clean_text("none", text) == text
    assert clean_text("text-v1", text) == text_v1(text) != ""


@given(ANY_TEXT)
def test_a_text_is_blank_only_without_letters_digits_marks_and_signs(text: str) -> None:
    seen = {unicodedata.category(each)[0] for each in text} & set("NPS")
    assert not (is_blank(text) and seen - ({"S"} if "\u2800" in text else set()))
    assert is_blank(f" {text}\u200b") == is_blank(text)


def test_names_are_versioned() -> None:
    assert {"text-v1": text_v1, "none": keep_unchanged} == CLEANINGS


@pytest.mark.parametrize("hostile", ["<", '<a x="', "<b ", "<!--", "&#", "<a x=y ", "<a\t"])
def test_text_v1_takes_linear_time(hostile: str) -> None:
    def seconds(length: int) -> float:
        text = (hostile * length)[:length]
        started = time.perf_counter()
        text_v1(text)
        return time.perf_counter() - started

    seconds(1000)
    assert seconds(MAX_CHARACTERS) < 20  # about 1 s; a quadratic search takes hours
