"""Offset mapping: where each character of a cleaned text stood in the original text.

A cleaning (`trainers/data/cleaning.py`) returns no offsets. So its steps are repeated here with
offsets, and the result is compared with the cleaning's own; if they differ, or the cleaning is
unknown, words are aligned instead, which places a changed word between its neighbours.

    mapping = trace_cleaning("text-v1", "un<b>believ</b>able!")
    mapping.text, mapping.original_span(0, 12)      # "unbelievable!", (0, 19)
"""

import difflib
import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

from trainers.data.cleaning import CLEANINGS, MAX_CHARACTERS

_MARKUP = re.compile(r"<[^<>]*>")  # whatever a cleaning may take for a tag or a comment
_WORD = re.compile(r"\S+")
_JAMO = range(0x1160, 0x1200)  # Korean vowels and finals, which join the letter before them


class OffsetMapping(NamedTuple):
    """A text, and for each of its characters the start and end in the original."""

    text: str
    starts: list[int]
    ends: list[int]

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """Return the original span of the characters `start` to `end`, at least one."""
        return self.starts[start], max(self.ends[start:end])


class _Edit(NamedTuple):
    """Replace the characters `start` to `end` by `text`."""

    start: int
    end: int
    text: str


def trace_cleaning(cleaning: str, raw: str) -> OffsetMapping:
    """Clean a text with the cleaning of that name and keep the offsets."""
    raw = raw[:MAX_CHARACTERS]
    cleaned = CLEANINGS[cleaning](raw)
    mapping = OffsetMapping(raw, list(range(len(raw))), list(range(1, len(raw) + 1)))
    if cleaned == raw:
        return mapping
    if cleaning == "text-v1":
        for step in (
            _strip_markup,
            _unescape_references,
            _replace_surrogates,
            _compose_accents,
            _collapse_space,
        ):
            mapping = _apply_edits(mapping, step(mapping.text))
        if mapping.text == cleaned:
            return mapping
    return _match_words(raw, cleaned)


def _apply_edits(mapping: OffsetMapping, edits: Iterable[_Edit]) -> OffsetMapping:
    """Apply edits in order; new characters map to all that they replace."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for start, end, text in edits:
        pieces += [mapping.text[done:start], text]
        starts += mapping.starts[done:start] + [mapping.starts[start]] * len(text)
        ends += mapping.ends[done:start] + [mapping.ends[end - 1]] * len(text)
        done = end
    pieces.append(mapping.text[done:])
    return OffsetMapping(
        "".join(pieces), starts + mapping.starts[done:], ends + mapping.ends[done:]
    )


def _strip_markup(text: str) -> Iterator[_Edit]:
    """Remove tags as the cleaning does: it is asked about each between two letters."""
    for match in _MARKUP.finditer(text):
        between = CLEANINGS["text-v1"](f"x{match.group()}y")
        if between in ("xy", "x y"):
            yield _Edit(match.start(), match.end(), between[1:-1])


def _unescape_references(text: str) -> Iterator[_Edit]:
    """Replace character references; none extends over an `&`."""
    for match in re.finditer("&[^&]*", text):
        piece = match.group()
        meant = html.unescape(piece)
        if meant != piece:
            pairs = zip(reversed(piece), reversed(meant), strict=False)
            kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            start, end = match.span()
            yield _Edit(start, end - kept, meant[: len(meant) - kept])


def _replace_surrogates(text: str) -> Iterator[_Edit]:
    for match in re.finditer(r"[\ud800-\udfff]", text):
        yield _Edit(match.start(), match.end(), "\ufffd")


def _compose_accents(text: str) -> Iterator[_Edit]:
    """Compose letters with their accents (NFC)."""
    if unicodedata.is_normalized("NFC", text):
        return
    cuts = [index for index, character in enumerate(text) if _starts_character(character)]
    if not cuts or cuts[0] > 0:
        cuts.insert(0, 0)
    for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        composed = unicodedata.normalize("NFC", text[start:end])
        if composed != text[start:end]:
            yield _Edit(start, end, composed)


def _starts_character(character: str) -> bool:
    """Return whether a character never joins the one before it."""
    if character.isascii():
        return True
    return (
        not unicodedata.combining(character)
        and not unicodedata.category(character).startswith("M")
        and ord(character) not in _JAMO
    )


def _collapse_space(text: str) -> Iterator[_Edit]:
    """Collapse white space and control characters to one space, none at the ends."""
    for match in re.finditer(r"[\s\x00-\x1f\x7f-\x9f]+", text):
        start, end = match.span()
        inside = start > 0 and end < len(text)
        if match.group() != " " or not inside:
            yield _Edit(start, end, " " if inside else "")


def _match_words(raw: str, cleaned: str) -> OffsetMapping:
    """Align equal words; place the others between their neighbours."""
    theirs, ours = list(_WORD.finditer(raw)), list(_WORD.finditer(cleaned))
    matcher = difflib.SequenceMatcher(
        None, [word.group() for word in theirs], [word.group() for word in ours], autojunk=False
    )
    starts, ends = [0] * len(cleaned), [len(raw)] * len(cleaned)
    for tag, first, last, from_word, to_word in matcher.get_opcodes():
        for offset, word in enumerate(ours[from_word:to_word]):
            if tag == "equal":
                start = theirs[first + offset].start()
                spans = [(start + k, start + k + 1) for k in range(len(word.group()))]
            else:
                low = theirs[first].start() if first < last else _previous_end(theirs, first)
                high = theirs[last - 1].end() if first < last else low
                spans = [(low, high)] * len(word.group())
            for character, (low, high) in enumerate(spans, word.start()):
                starts[character], ends[character] = low, high
    return OffsetMapping(cleaned, starts, ends)


def _previous_end(words: list[re.Match[str]], number: int) -> int:
    """Return where the word before the `number`th ends."""
    return words[number - 1].end() if number else 0
