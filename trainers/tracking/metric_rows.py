"""The rows of metrics.jsonl: what every reader relies on, and lines that are damaged."""

import json
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def parse_rows(
    data: bytes, on_damage: Callable[[int], object] = lambda number: None
) -> Iterator[Row]:
    """Yield the rows in complete lines of metrics.jsonl.

    on_damage: called with the number of a line that holds none. The last line is half written where
    it does not end; that is no damage.
    """
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        row = _parse_row(line)
        if row is None:
            on_damage(number)
        else:
            yield row


def _parse_row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("kind"), str):
        return None
    # A later version may write other kinds; they need a step, by which a restart drops them.
    needed = ROW_FIELDS.get(row["kind"], {"step": is_count})
    return row if all(is_valid(row.get(name)) for name, is_valid in needed.items()) else None


def is_count(value: object) -> bool:
    """Return whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_number_or_absent(value: object) -> bool:
    return value is None or _is_number(value)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


ROW_FIELDS: dict[str, dict[str, Callable[[object], bool]]] = {  # what every reader relies on
    "start": {
        "step": is_count,
        "total_steps": is_count,
        "lost_steps": _is_number_or_absent,
        "lost_seconds": _is_number_or_absent,
    },
    "step": {
        "step": is_count,
        "loss": _is_number,
        "learning_rate": _is_number,
        "tokens": is_count,
        "computed_tokens": _is_positive,
        "seconds": _is_positive,
        "tokens_per_second_per_device": _is_number_or_absent,
        "tflops_per_device": _is_number_or_absent,
        "mfu": _is_number_or_absent,
        "memory_gib": _is_number_or_absent,
    },
    "evaluation": {"step": is_count, "tokens": is_count, "metrics": _is_object},
    "notice": {"step": is_count},
    "conclusion": {"step": is_count},
    "warning": {"step": is_count, "text": _is_text},
}
