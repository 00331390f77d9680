"""A problem in a cluster file: the field, its value, what is wrong and how to fix it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.settings import did_you_mean

MISSING = object()


@dataclass(frozen=True)
class ConfigProblem:
    """One problem. field: dotted. value: MISSING where there is none, or where it is a secret."""

    field: str
    message: str
    value: Any = MISSING

    def __str__(self) -> str:
        given = "" if self.value is MISSING else f" = {self.value!r}"
        return f"{self.field}{given}: {self.message}"


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is and {} for anything else, which the schema check reports."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """Return a list as it is and [] for anything else, which the schema check reports."""
    return value if isinstance(value, list) else []


def suggest_name(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean X?` for a name that is none of `names`, or else list them."""
    known = sorted(names)
    return did_you_mean(str(name), known) or f"; there are {', '.join(known)}"
