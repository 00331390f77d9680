"""How a model is asked for: `sentiment`, `sentiment:3` or `sentiment@best`; pure.

Knows which words are names, versions and aliases, not which of them there are.

    Reference.parse("sentiment@best")     # Reference(name="sentiment", alias="best")
"""

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

from cluster.errors import BerthaError

GRAMMAR = "NAME, NAME:VERSION or NAME@ALIAS, as in sentiment, sentiment:3 and sentiment@best"
LIVE = "live"  # the alias of what answers under a bare name

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class BadReference(BerthaError):
    """Words that name no model in any registry; the text shows the grammar."""


class NoModel(BerthaError):
    """A name, version or alias that the registry does not have; the text says what it has."""


class Reference(NamedTuple):
    """What a request asks for: a name, and perhaps one version or one alias of it."""

    name: str
    version: str | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """The reference that `text` writes. Raises BadReference."""
        for mark, pattern, field in ((":", _VERSION, "version"), ("@", _ALIAS, "alias")):
            name, separator, rest = text.partition(mark)
            if separator and _NAME.fullmatch(name) and pattern.fullmatch(rest):
                return cls(name, **{field: rest})
        if _NAME.fullmatch(text):
            return cls(text)
        raise BadReference(f"{text[:80]!r} names no model; write {GRAMMAR}")

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}:{self.version}"
        return f"{self.name}@{self.alias}" if self.alias is not None else self.name


def checked_name(name: str) -> str:
    """`name`, where it can name a model. Raises BadReference."""
    if _NAME.fullmatch(name):
        return name
    raise BadReference(
        f"{name[:80]!r} is no name of a model; take small letters, digits and . _ - after a "
        "letter or a digit, as in sentiment-v2"
    )


def checked_alias(alias: str) -> str:
    """`alias`, where it can be one. Raises BadReference."""
    if _ALIAS.fullmatch(alias) and alias != LIVE:
        return alias
    if alias == LIVE:
        raise BadReference(
            f"alias {LIVE!r} moves when a version is deployed, promoted or rolled back; deploy the "
            "version instead"
        )
    raise BadReference(
        f"{alias[:80]!r} is no alias; take small letters, digits and . _ - after a letter, as in "
        "best"
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of an error about a word that is not there: what is nearest, or what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return (
        f"there is {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        if names
        else ("there is none yet")
    )
