"""Cleanings by name and version: what happens to a text before the tokenizer sees it.

A cleaning is a pure function, the same in training and serving; a change of what one does gets a
new name. What a cleaning leaves nothing of, `clean_text` returns as "": training leaves such a row
out, and serving refuses such a text.
"""

import html
import re
import unicodedata
from collections.abc import Callable

MAX_CHARACTERS = 1_000_000  # of a raw text that are read; no model gets that far

_BLOCKS = (
    "address article aside blockquote body br center dd div dl dt fieldset figcaption figure "
    "footer form h1 h2 h3 h4 h5 h6 head header hr html img li main nav ol option p pre script "
    "section select style table tbody td tfoot th thead title tr ul"
)
_INLINES = (
    "a abbr acronym b big button cite code del dfn em font i input ins kbd label mark q s samp "
    "small span strike strong sub sup tt u var"
)
# An attribute must have a value: `<b and c>` is somebody's arithmetic, not a tag. Possessive
# quantifiers and values without < and > keep the search linear in the length of any text.
_ATTRIBUTES = r"""(?:\s++[a-z][\w:.-]*+\s*+=\s*+(?:"[^"<>]*+"|'[^'<>]*+'|[^\s"'<>=]++))*+\s*+/?"""


def _tag_pattern(names: str) -> str:
    return rf"</?(?:{'|'.join(names.split())})(?![\w:.-]){_ATTRIBUTES}>"


_BLOCK = re.compile(
    rf"{_tag_pattern(_BLOCKS)}|<!--[^<>]*+(?<=--)>|<!doctype[^<>]*+>", re.IGNORECASE
)
_INLINE = re.compile(_tag_pattern(_INLINES), re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# White space, control characters, and what Unicode says is drawn as nothing
# (Default_Ignorable_Code_Point, the interlinear marks, the empty Braille pattern).
_BLANK = re.compile(
    r"[\s\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*+"
)


def text_v1(text: str) -> str:
    """Clean a text to what a person reads, on one line.

    Line breaks, paragraphs and other blocks of HTML become a space, tags inside a line (`<b>`)
    vanish, and what only looks like a tag stays (`<3`, `a < b`). Character references become
    characters, everything is composed (Unicode NFC), half surrogates become U+FFFD, and each run
    of white space and control characters becomes one space, none at the ends.

    Idempotent on texts without `<` and `&`. Elsewhere it is not and cannot be: `&lt;b&gt;` is how
    HTML writes the three letters `<b>`, and those, met again, are a tag.
    """
    if "<" in text:
        text = _INLINE.sub("", _BLOCK.sub(" ", text))
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _SURROGATE.sub("\ufffd", text))
    text = " ".join(text.split())
    return text if text.isprintable() else " ".join(_CONTROL.sub(" ", text).split())


def keep_unchanged(text: str) -> str:
    """Return the text as it is."""
    return text


CLEANINGS: dict[str, Callable[[str], str]] = {"text-v1": text_v1, "none": keep_unchanged}


def clean_text(cleaning: str, text: str) -> str:
    """Return a text under the cleaning of that name; "" where nobody sees anything of the rest."""
    cleaned = CLEANINGS[cleaning](text)
    return "" if is_blank(cleaned) else cleaned


def is_blank(text: str) -> bool:
    """Return whether a text holds nothing but white space, control and invisible characters."""
    return _BLANK.fullmatch(text) is not None
