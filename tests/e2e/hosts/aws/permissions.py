"""Whether policies of IAM let a deed be done: allowed somewhere, denied nowhere. Pure.

Source: IAM User Guide, "Policy evaluation logic" and "IAM JSON policy elements". Of the operators
of conditions only those of OPERATORS are known; another one raises KeyError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

OPERATORS = {
    "StringEquals": lambda wanted, is_: wanted == is_,
    "StringLike": lambda wanted, is_: fnmatchcase(is_, wanted),
    "Bool": lambda wanted, is_: wanted.lower() == is_.lower(),
}
Statement = Mapping[str, Any]


@dataclass(frozen=True)
class Deed:
    """What a request does to what. context: condition keys and their values."""

    action: str
    resource: str = "*"
    context: Mapping[str, str] = field(default_factory=dict)


def is_allowed(statements: Sequence[Statement], deed: Deed) -> bool:
    """Whether a statement allows it and none denies it."""
    effects = {each["Effect"] for each in statements if _concerns(each, deed)}
    return effects == {"Allow"}


def is_denied(statements: Sequence[Statement], deed: Deed) -> bool:
    """Whether a statement denies it, whoever asks."""
    return any(each["Effect"] == "Deny" and _concerns(each, deed) for each in statements)


def _concerns(statement: Statement, deed: Deed) -> bool:
    action = any(fnmatchcase(deed.action, pattern) for pattern in _listed(statement["Action"]))
    resource = any(fnmatchcase(deed.resource, each) for each in _listed(statement["Resource"]))
    return (
        action
        and resource
        and all(
            any(OPERATORS[operator](value, deed.context.get(key, "")) for value in _listed(wanted))
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
