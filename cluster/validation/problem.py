"""A mistake in a cluster file: which field, which value, what is wrong and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MISSING = object()


@dataclass(frozen=True)
class Mistake:
    """One mistake. field: dotted. value: MISSING where there is none, or where it is a secret."""

    field: str
    told: str
    value: Any = MISSING

    def __str__(self) -> str:
        given = "" if self.value is MISSING else f" = {self.value!r}"
        return f"{self.field}{given}: {self.told}"


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping as it is; nothing for what should be one: the schema says so already."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """A list as it is; nothing for what should be one."""
    return value if isinstance(value, list) else []


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean X?` for a name that is none of `names`; else what there is."""
    known = sorted(names)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
