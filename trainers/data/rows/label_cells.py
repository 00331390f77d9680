"""One cell of a label column: a name, a list of names, a row of columns of 0 and 1, or nothing."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data.rows.label_lists import as_list
from trainers.data.sources import is_missing

# The classes of a row (one for classification, none for masked-lm), or the number to predict.
Label = tuple[str, ...] | float

SEVERAL_ONES = "several 1s in one row (task: multi-label?)"
NO_TRUTH = "neither 0 nor 1 in a label column"
_TRUTHS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
_WITHHELD = ("-1", "-1.0")
_INVISIBLE = "\0\u200b\u200c\u200d\u2060\ufeff"  # at the ends of a name, nobody sees them


def flatten_labels(labels: Iterable[Label | None]) -> list[str]:
    """Return the names in labels, in order and with repeats; none of numbers."""
    return [name for label in labels if isinstance(label, tuple) for name in label]


def clean_name(value: object) -> str:
    """Return a label's name: composed (Unicode NFC), without blanks at its ends."""
    name = str(value)
    if name.isascii() and "\0" not in name:
        return name.strip()
    name = unicodedata.normalize("NFC", name)
    while (stripped := name.strip().strip(_INVISIBLE)) != name:
        name = stripped
    return name


def means_missing(value: Any, data: DataConfig) -> bool:
    """Return whether a cell is a text that stands for nothing, and is no class of data.labels."""
    if not isinstance(value, str) or (name := clean_name(value)) not in data.missing:
        return False
    return name not in map(clean_name, data.labels or ())


def parse_cell(
    value: Any, vector: list[int] | None, names: tuple[str, ...], task: Task, data: DataConfig
) -> tuple[Label | None, str]:
    """Return the label in a cell, or None and the reason why not.

    vector: the cell as one of 0 and 1 in the order of `names`, where it is that.
    """
    if isinstance(value, tuple):
        return _parse_columns(value, task, data)
    if vector is not None:
        return _name_ones(vector, names, task)
    if means_missing(value, data):
        return None, f"label {clean_name(value)!r} (data.missing)"
    if isinstance(value, dict):
        return None, "label is an object (name its keys: data.label=[label.a, label.b]?)"
    if task == "classification":
        return _parse_single(value, data)
    return _parse_multiple(value, data)


def _name_ones(vector: list[int], names: tuple[str, ...], task: Task) -> tuple[Label | None, str]:
    found = tuple(name for name, item in zip(names, vector, strict=True) if item)
    if task == "classification" and len(found) != 1:
        return None, SEVERAL_ONES if found else "no 1 among the classes"
    return found, ""


def _parse_columns(
    cells: tuple[Any, ...], task: Task, data: DataConfig
) -> tuple[Label | None, str]:
    """Parse a row of label columns, each 0 or 1."""
    truths = []
    for name, cell in zip(data.label_columns, cells, strict=True):
        if is_missing(cell) or means_missing(cell, data) or str(cell).strip() in _WITHHELD:
            return None, f"no label in column {name!r}"
        truth = _TRUTHS.get(str(cell).strip().lower())
        if truth is None:
            return None, NO_TRUTH
        truths.append(truth)
    return _name_ones(truths, tuple(map(clean_name, data.label_columns)), task)


def _parse_single(value: Any, data: DataConfig) -> tuple[Label | None, str]:
    name = "" if is_missing(value) else clean_name(value)
    # Of numbers it may be a range, such as [18, 35].
    is_list = isinstance(value, list) or (
        name.startswith("[")
        and name not in (data.labels or ())
        and any(isinstance(item, str) for item in as_list(name) or ())
    )
    if is_list:
        return None, "label is a list (task: multi-label?)"
    return ((name,), "") if name else (None, "no label")


def _parse_multiple(value: Any, data: DataConfig) -> tuple[Label | None, str]:
    """Parse `a|b`, a list, or the text of a list; an empty one is a row without labels."""
    items = as_list(value)
    if items is None and isinstance(value, str):
        if value.lstrip().startswith("["):
            return None, "label is no list of JSON or Python"
        items = value.split(data.label_separator)
    elif items is None:
        if is_missing(value):
            return None, "no label"
        items = [value]
    given = [item for item in items if not is_missing(item)]
    names = [clean_name(item) for item in given if not means_missing(item, data)]
    if given and not names:
        return None, f"label {clean_name(given[0])!r} (data.missing)"
    return tuple(dict.fromkeys(filter(None, names))), ""
