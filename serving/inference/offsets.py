"""Where the characters of a cleaned text stood in the text that was given.

A cleaning (`trainers/data/cleaning.py`) says what comes out, not where it came from. Here its steps
are taken again with the places kept, and the outcome is held against the cleaning's own; where they
differ, or for a cleaning that is not known here, words are matched instead, which places a word
that was changed between its neighbours. Knows no tokenizer and no model.

    traced = trace("text-v1", "un<b>believ</b>able!")
    traced.text, traced.place(0, 12)      # "unbelievable!", (0, 19)
"""

import difflib
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from trainers.data.cleaning import CLEANINGS, LONGEST

_MARKUP = re.compile(r"<[^<>]*>")  # whatever a cleaning may take for a tag or a comment
_WORD = re.compile(r"\S+")
_JAMO = range(0x1160, 0x1200)  # Korean vowels and finals, which join the letter before them


class Traced(NamedTuple):
    """A text, and for each of its characters where its origin starts and ends."""

    text: str
    starts: list[int]
    ends: list[int]

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where the characters `start` up to `end` came from, as a span; they are at least one."""
        return self.starts[start], max(self.ends[start:end])


class _Edit(NamedTuple):
    """Characters `start` up to `end` that become `text`."""

    start: int
    end: int
    text: str


def trace(cleaning: str, raw: str) -> Traced:
    """What the cleaning of that name makes of a text, traced."""
    raw = raw[:LONGEST]
    cleaned = CLEANINGS[cleaning](raw)
    traced = Traced(raw, list(range(len(raw))), list(range(1, len(raw) + 1)))
    if cleaned == raw:
        return traced
    if cleaning == "text-v1":
        for step in (_markup, _references, _half_characters, _composition, _space):
            traced = _edited(traced, step(traced.text))
        if traced.text == cleaned:
            return traced
    return _matched(raw, cleaned)


def _edited(traced: Traced, edits: Iterable[_Edit]) -> Traced:
    """The text after edits, given in order; what is new comes from all that it replaces."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for start, end, text in edits:
        pieces += [traced.text[done:start], text]
        starts += traced.starts[done:start] + [traced.starts[start]] * len(text)
        ends += traced.ends[done:start] + [traced.ends[end - 1]] * len(text)
        done = end
    pieces.append(traced.text[done:])
    return Traced("".join(pieces), starts + traced.starts[done:], ends + traced.ends[done:])


def _markup(text: str) -> Iterator[_Edit]:
    """Tags: the cleaning is asked what it makes of each between two letters."""
    for match in _MARKUP.finditer(text):
        between = CLEANINGS["text-v1"](f"x{match.group()}y")
        if between in ("xy", "x y"):
            yield _Edit(match.start(), match.end(), between[1:-1])


def _references(text: str) -> Iterator[_Edit]:
    """Character references: none reaches over an `&`."""
    for match in re.finditer("&[^&]*", text):
        piece = match.group()
        meant = html.unescape(piece)
        if meant != piece:
            kept = _common_suffix(piece, meant)
            start, end = match.span()
            yield _Edit(start, end - kept, meant[: len(meant) - kept])


def _half_characters(text: str) -> Iterator[_Edit]:
    """Half surrogates."""
    for match in re.finditer(r"[\ud800-\udfff]", text):
        yield _Edit(match.start(), match.end(), "\ufffd")


def _composition(text: str) -> Iterator[_Edit]:
    """Letters with their accents, composed."""
    if unicodedata.is_normalized("NFC", text):
        return
    cuts = [place for place, character in enumerate(text) if _begins(character)]
    if not cuts or cuts[0] > 0:
        cuts.insert(0, 0)
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        composed = unicodedata.normalize("NFC", text[start:end])
        if composed != text[start:end]:
            yield _Edit(start, end, composed)


def _begins(character: str) -> bool:
    """Whether a character never joins the one before it."""
    if character.isascii():
        return True
    return (
        not unicodedata.combining(character)
        and not unicodedata.category(character).startswith("M")
        and ord(character) not in _JAMO
    )


def _space(text: str) -> Iterator[_Edit]:
    """Runs of white space and control characters: one space, none at the ends."""
    for match in re.finditer(r"[\s\x00-\x1f\x7f-\x9f]+", text):
        start, end = match.span()
        inside = start > 0 and end < len(text)
        if match.group() != " " or not inside:
            yield _Edit(start, end, " " if inside else "")


def _common_suffix(one: str, other: str) -> int:
    """How many characters at the end of both are the same."""
    most = min(len(one), len(other))
    for length in range(most):
        if one[-1 - length] != other[-1 - length]:
            return length
    return most


def _matched(raw: str, cleaned: str) -> Traced:
    """Words of the cleaned text at the same words of the raw one, others between those."""
    theirs, ours = list(_WORD.finditer(raw)), list(_WORD.finditer(cleaned))
    matcher = difflib.SequenceMatcher(
        None, [word.group() for word in theirs], [word.group() for word in ours], autojunk=False
    )
    starts, ends = [0] * len(cleaned), [len(raw)] * len(cleaned)
    for tag, first, last, from_word, to_word in matcher.get_opcodes():
        for offset, word in enumerate(ours[from_word:to_word]):
            if tag == "equal":
                at = theirs[first + offset].start()
                places = [(at + k, at + k + 1) for k in range(len(word.group()))]
            else:
                low = theirs[first].start() if first < last else _end(theirs, first)
                high = theirs[last - 1].end() if first < last else low
                places = [(low, high)] * len(word.group())
            for character, (low, high) in enumerate(places, word.start()):
                starts[character], ends[character] = low, high
    return Traced(cleaned, starts, ends)


def _end(words: list[re.Match[str]], number: int) -> int:
    """Where the word before the `number`th ends."""
    return words[number - 1].end() if number else 0
