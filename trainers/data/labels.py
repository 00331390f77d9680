"""Labels: what a label column says, and the targets that a model learns.

The one place that knows that a column may hold names, indices, `1.0` for 1, several labels in one
cell, or numbers to predict. Knows no texts and no tokens.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trainers.config.recipe import Data, Task
from trainers.data.files import DataError
from trainers.data.readers import Skips
from trainers.data.sources import Rows, is_missing

# The classes of a row (one for classification, none for masked-lm), or the number to predict.
Label = tuple[str, ...] | float

_WHOLE = re.compile(r"(-?[0-9]{1,15})(?:\.0+)?")
_SHOWN = 20
_LARGEST = float(np.finfo(np.float32).max)


def parse(rows: Rows, task: Task, data: Data, skips: Skips) -> list[Label | None]:
    """The label of each row; None, and counted in `skips`, where it cannot be used.

    A column of whole numbers written as floats (1.0) is read as whole numbers. Where data.labels or
    the source names the classes and the column holds indices from 0, these become names. Masked-lm
    has no labels: each is ().
    """
    if task == "masked-lm":
        return [()] * len(rows.labels)
    found: list[Label | None] = []
    for value, number in zip(rows.labels, rows.numbers, strict=True):
        label, reason = _READERS[task](value, data.label_separator)
        if label is None:
            skips.add(reason, number)
        found.append(label)
    return found if task == "regression" else _named(found, rows, data, skips)


def vocabulary(
    labels: Sequence[Label], task: Task, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The class names in order: `given`, or those of the training rows; () for regression and
    masked-lm.

    labels: of the training rows. Raises DataError where there is nothing to tell apart.
    """
    if task in ("regression", "masked-lm"):
        return ()
    met = set(_flat(labels))
    if task == "classification" and len(met) < 2:
        raise DataError(
            f"all training rows have the label {min(met)[:60]!r}; a classifier needs two. "
            "Is data.label the right column, and does data.filter keep both?"
        )
    if not met:
        raise DataError("no training row has a label; is data.label the right column?")
    if given is not None:
        return given
    return tuple(sorted(met, key=int if all(map(_WHOLE.fullmatch, met)) else None))


def targets(
    labels: Sequence[Label], task: Task, names: tuple[str, ...], place: Callable[[int], str]
) -> np.ndarray:
    """What a model learns: class indices `[n]` int64, for multi-label 0 or 1 `[n, num_labels]`
    float32, for regression numbers `[n]` float32, for masked-lm unused zeros `[n]` int64.

    place: where a row stands, for the DataError that a label not in `names` raises.
    """
    if task == "regression":
        return np.array(labels, dtype=np.float32)
    if task == "masked-lm":
        return np.zeros(len(labels), dtype=np.int64)
    index = {name: i for i, name in enumerate(names)}
    pairs = [(row, name) for row, label in enumerate(labels) for name in _flat([label])]
    for row, name in pairs:
        if name not in index:
            raise _unknown(name, place(row), names)
    columns = np.array([index[name] for _, name in pairs], dtype=np.int64)
    if task == "classification":
        return columns
    hot = np.zeros((len(labels), len(names)), dtype=np.float32)
    hot[np.array([row for row, _ in pairs], dtype=np.int64), columns] = 1
    return hot


def counts(labels: Sequence[Label], names: tuple[str, ...]) -> dict[str, int]:
    """How many rows have each label, in the order of `names`."""
    met = Counter(_flat(labels))
    return {name: met[name] for name in names}


def _unknown(name: str, place: str, names: tuple[str, ...]) -> DataError:
    known = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    return DataError(
        f"{place}: label {name[:60]!r} is not one of {known}. The classes are data.labels, "
        "by default those of the training rows: mend the row, or name every class in data.labels"
    )


def _flat(labels: Sequence[Label | None]) -> list[str]:
    return [name for label in labels if isinstance(label, tuple) for name in label]


def _one(value: Any, separator: str) -> tuple[Label | None, str]:
    if isinstance(value, (list, dict)):
        return None, "label is a list (task: multi-label?)"
    if is_missing(value):
        return None, "no label"
    return (str(value).strip(),), ""


def _several(value: Any, separator: str) -> tuple[Label | None, str]:
    """`a|b`, a list, or a JSON list in a text; an empty one is a row without labels."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None, "label is not a JSON list"
    elif isinstance(value, str):
        value = value.split(separator)
    elif is_missing(value):
        return None, "no label"
    items = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(str(item).strip() for item in items if not is_missing(item))), ""


def _number(value: Any, separator: str) -> tuple[Label | None, str]:
    if is_missing(value):
        return None, "no label"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if abs(number) <= _LARGEST:
        return number, ""
    return None, "label is not a finite number"


_READERS = {"classification": _one, "multi-label": _several, "regression": _number}


def _named(found: list[Label | None], rows: Rows, data: Data, skips: Skips) -> list[Label | None]:
    """Whole numbers without decimals, and indices by their names."""
    met = set(_flat(found))
    whole = {name: match[1] for name in met if (match := _WHOLE.fullmatch(name))}
    if len(whole) < len(met):
        whole = {name: name for name in met}
    names = _names_of_indices(set(whole.values()), rows.label_names, data.labels)
    final = {name: names.get(number, number) for name, number in whole.items()}
    for row, label in enumerate(found):
        if not isinstance(label, tuple):
            continue
        if rows.label_names and "-1" in label:  # how hubs mark a held-back label
            skips.add("no label", rows.numbers[row])
            found[row] = None
        else:
            found[row] = tuple(final[name] for name in label)
    return found


def _names_of_indices(
    met: set[str], named: tuple[str, ...], given: tuple[str, ...] | None
) -> dict[str, str]:
    """Class names by index, as text; none where the column `met` holds names itself."""
    names: tuple[str, ...] = ()
    if named:
        names = named if given is None or set(named) <= set(given) else given
    elif given is not None and not met & set(given):
        names = given
    return {str(index): name for index, name in enumerate(names)}
