"""References to a model: `sentiment`, `sentiment:3` or `sentiment@best`.

ModelReference.parse("sentiment@best")     # ModelReference(name="sentiment", alias="best")
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cluster.errors import BerthaError

GRAMMAR = "NAME, NAME:VERSION or NAME@ALIAS, as in sentiment, sentiment:3 and sentiment@best"
LIVE = "live"  # the alias of what answers under a bare name

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class InvalidReference(BerthaError):
    """A text that is no reference; the message shows the grammar."""


class ModelNotFound(BerthaError):
    """A name, version or alias that the registry lacks; the message says what it has."""


class ModelDamaged(BerthaError):
    """A model whose files are damaged or cannot be read now; the message says which, and why."""


class ModelReference(NamedTuple):
    """A name, and optionally a version or an alias of it."""

    name: str
    version: str | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelReference":
        """Parse a reference. Raises InvalidReference."""
        for mark, pattern, field in ((":", _VERSION, "version"), ("@", _ALIAS, "alias")):
            name, separator, rest = text.partition(mark)
            if separator and _NAME.fullmatch(name) and pattern.fullmatch(rest):
                return cls(name, **{field: rest})
        if _NAME.fullmatch(text):
            return cls(text)
        raise InvalidReference(f"{text[:80]!r} names no model; write {GRAMMAR}")

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}:{self.version}"
        return f"{self.name}@{self.alias}" if self.alias is not None else self.name


def is_model_name(name: str) -> bool:
    """Return whether `name` can name a model."""
    return _NAME.fullmatch(name) is not None


def is_version(version: str) -> bool:
    """Return whether `version` is the number of one, from 1 on."""
    return _VERSION.fullmatch(version) is not None


def check_model_name(name: str) -> str:
    """Return `name` if it can name a model. Raises InvalidReference."""
    if is_model_name(name):
        return name
    raise InvalidReference(
        f"{name[:80]!r} is no name of a model; take small letters, digits and . _ - after a "
        "letter or a digit, as in sentiment-v2"
    )


def default_model_name(bundle: Path) -> str:
    """Return the name a bundle gets when none is given: that of its run, or of its directory."""
    directory = bundle.resolve()
    plain = directory.parent.name if directory.name == "bundle" else directory.name
    return re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._")[:128] or "model"


def check_alias(alias: str) -> str:
    """Return `alias` if it can be one. Raises InvalidReference."""
    if _ALIAS.fullmatch(alias) and alias != LIVE:
        return alias
    if alias == LIVE:
        raise InvalidReference(
            f"alias {LIVE!r} moves when a version is deployed, promoted or rolled back; deploy the "
            "version instead"
        )
    raise InvalidReference(
        f"{alias[:80]!r} is no alias; take small letters, digits and . _ - after a letter, as in "
        "best"
    )


def suggest_names(word: str, known: Iterable[str]) -> str:
    """Return the end of a not-found error: the closest name, or all names."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    if not names:
        return "there is none yet"
    return f"there is {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
