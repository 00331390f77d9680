"""IAM policy evaluation: an action is permitted if a statement allows it and none denies it.

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
class ApiAction:
    """An action on a resource. context: condition keys and their values."""

    action: str
    resource: str = "*"
    context: Mapping[str, str] = field(default_factory=dict)


def is_allowed(statements: Sequence[Statement], api_action: ApiAction) -> bool:
    """Whether a statement allows the action and none denies it."""
    effects = {each["Effect"] for each in statements if _matches_statement(each, api_action)}
    return effects == {"Allow"}


def is_denied(statements: Sequence[Statement], api_action: ApiAction) -> bool:
    """Whether a statement denies the action, whoever asks."""
    return any(
        each["Effect"] == "Deny" and _matches_statement(each, api_action) for each in statements
    )


def _matches_statement(statement: Statement, api_action: ApiAction) -> bool:
    action = any(
        fnmatchcase(api_action.action, pattern) for pattern in _as_list(statement["Action"])
    )
    resource = any(
        fnmatchcase(api_action.resource, each) for each in _as_list(statement["Resource"])
    )
    return (
        action
        and resource
        and all(
            any(
                OPERATORS[operator](value, api_action.context.get(key, ""))
                for value in _as_list(wanted)
            )
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
    )


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
