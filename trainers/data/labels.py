"""Labels: parse a label column, and build the targets that a model learns.

The one place that knows that a column may hold names, indices, `1.0` for 1, several labels in one
cell, vectors of 0 and 1, what means missing, or numbers to predict.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data.files import DataError
from trainers.data.rows.label_cells import Label as Label
from trainers.data.rows.label_cells import clean_name, flatten_labels, means_missing, parse_cell
from trainers.data.rows.label_checks import check_reasons, check_separator, note_missing
from trainers.data.rows.label_column import LabelColumn
from trainers.data.rows.label_names import explain_unknown, note_similar
from trainers.data.rows.label_vectors import find_vectors
from trainers.data.rows.skips import SkipCounter
from trainers.data.sources import is_missing

_WHOLE = re.compile(r"(-?[0-9]{1,15})(?:\.0+)?")
_NUMBERED = re.compile(r"-?[0-9]{1,15}|label_[0-9]{1,15}")
_MAX_SHOWN = 20
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ParsedColumn:
    """The label of each distinct cell of a column, None where it has no use.

    notes: for the data report. places: the classes of a column of vectors, in order; () of others.
    """

    labels: list[Label | None]
    notes: tuple[str, ...]
    places: tuple[str, ...] = ()


def parse_labels(
    column: LabelColumn, task: Task, data: DataConfig, skips: SkipCounter
) -> ParsedColumn:
    """Parse each cell of a column, and count in `skips` the rows of those without use.

    A column of whole numbers written as floats (1.0) is read as whole numbers. Where data.labels or
    the source names the classes and the column holds indices from 0, these become names; a column
    of vectors of 0 and 1 has a class a place, by default `label_0` and so on. Not for masked-lm,
    which has no labels. Raises DataError where the column can be read in several ways.
    """
    numbers = column.numbers.tolist()

    def locate(place: int) -> str:
        return f"{skips.unit} {numbers[place]}"

    vectors, length = find_vectors(column.values, task, data, locate)
    places = _name_places(length, column.names, data)
    labels: list[Label | None] = []
    reasons: list[str] = []
    for place, value in enumerate(column.values):
        label, reason = parse_cell(value, vectors.get(place), places, task, data)
        labels.append(label)
        reasons.append(reason if label is None else "")
    check_reasons(column, reasons, data, locate)
    for reason, number, count in zip(reasons, numbers, column.counts.tolist(), strict=True):
        if reason:
            skips.count_skipped(reason, number, count)
    notes = note_missing(column, labels, data)
    if vectors:
        what = f"vectors of {length} numbers 0 and 1, a class each"
        return ParsedColumn(labels, (f"column {data.label!r} holds {what}", *notes), places)
    if isinstance(data.label, str):
        notes += check_separator(labels, task, data)
        labels = _resolve_names(labels, column, data, skips)
        notes += note_similar(_count_names(labels, column.counts))
    return ParsedColumn(labels, notes)


def parse_cells(
    cells: Sequence[Any], numbers: Sequence[int], task: Task, data: DataConfig, skips: SkipCounter
) -> list[Label | None]:
    """Parse all cells of a label column that is in memory; numbers: `[n]` of their rows."""
    if task == "masked-lm":
        return [()] * len(cells)
    if task == "regression":
        found: list[Label | None] = []
        for cell, number in zip(cells, numbers, strict=True):
            value, reason = parse_number(cell, data)
            if value is None:
                skips.count_skipped(reason, number)
            found.append(value)
        return found
    column, codes = LabelColumn.from_cells(cells, numbers)
    parsed = parse_labels(column, task, data, skips)
    return [parsed.labels[code] for code in codes]


def parse_number(cell: Any, data: DataConfig) -> tuple[float | None, str]:
    """Parse one cell of a regression's label column; None, and the reason, for one without use."""
    if means_missing(cell, data):
        return None, f"label {clean_name(cell)!r} (data.missing)"
    if is_missing(cell):
        return None, "no label"
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    return (number, "") if abs(number) <= _LARGEST else (None, "label is not a finite number")


def class_names(
    labels: Iterable[Label], task: Task, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the class names in order: `given`, or those of all rows.

    labels: the distinct ones. () for regression and masked-lm.
    """
    if task in ("regression", "masked-lm"):
        return ()
    if given is not None:
        names = tuple(map(clean_name, given))
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"the classes {given!r:.200} are {twice!r} twice, blanks apart")
        return names
    present = set(flatten_labels(labels))
    if all(map(_NUMBERED.fullmatch, present)):
        return tuple(sorted(present, key=lambda name: int(name.removeprefix("label_"))))
    return tuple(sorted(present))


def build_targets(
    labels: Sequence[Label], task: Task, names: tuple[str, ...], locate_row: Callable[[int], str]
) -> np.ndarray:
    """Build class indices `[n]` int64, for multi-label 0 or 1 `[n, num_labels]` float32.

    For regression numbers `[n]` float32, for masked-lm unused zeros `[n]` int64. locate_row: names
    the place of a row, for the DataError that a label not in `names` raises.
    """
    if task == "regression":
        return np.array(labels, dtype=np.float32)
    if task == "masked-lm":
        return np.zeros(len(labels), dtype=np.int64)
    index = {name: i for i, name in enumerate(names)}
    pairs = [(row, name) for row, label in enumerate(labels) for name in flatten_labels([label])]
    for row, name in pairs:
        if name not in index:
            raise _unknown_label_error(name, locate_row(row), names, task)
    columns = np.array([index[name] for _, name in pairs], dtype=np.int64)
    if task == "classification":
        return columns
    hot = np.zeros((len(labels), len(names)), dtype=np.float32)
    hot[np.array([row for row, _ in pairs], dtype=np.int64), columns] = 1
    return hot


def count_labels(
    labels: Sequence[Label], counts: np.ndarray, names: tuple[str, ...]
) -> dict[str, int]:
    """Count the rows of each label, in the order of `names`; counts: `[d]` rows of `labels`."""
    found = dict.fromkeys(names, 0)
    for label, count in zip(labels, counts.tolist(), strict=True):
        for name in flatten_labels([label]) if count else ():
            found[name] += count
    return found


def _unknown_label_error(name: str, place: str, names: tuple[str, ...], task: Task) -> DataError:
    known = ", ".join(map(repr, names[:_MAX_SHOWN])) + (", ..." if len(names) > _MAX_SHOWN else "")
    way_out = explain_unknown(name, names, task == "multi-label")
    return DataError(f"{place}: label {name[:60]!r} is not one of {known}. {way_out}")


def _count_names(labels: Sequence[Label | None], counts: np.ndarray) -> Counter[str]:
    rows: Counter[str] = Counter()
    for label, count in zip(labels, counts.tolist(), strict=True):
        for name in flatten_labels([label]):
            rows[name] += count
    return rows


def _name_places(length: int, named: tuple[str, ...], data: DataConfig) -> tuple[str, ...]:
    """Return the classes of vectors of `length` numbers; named: by the source."""
    if data.labels is not None and length:
        return tuple(map(clean_name, data.labels))
    return named if len(named) == length else tuple(f"label_{place}" for place in range(length))


def _resolve_names(
    labels: list[Label | None], column: LabelColumn, data: DataConfig, skips: SkipCounter
) -> list[Label | None]:
    """Write whole numbers without decimals, and replace indices by their class names."""
    present = set(flatten_labels(labels))
    whole = {name: match[1] for name in present if (match := _WHOLE.fullmatch(name))}
    if len(whole) < len(present):
        whole = {name: name for name in present}
    names = _index_names(set(whole.values()), column.names, data.labels)
    final = {name: names.get(number, number) for name, number in whole.items()}
    for place, label in enumerate(labels):
        if not isinstance(label, tuple):
            continue
        if column.names and "-1" in label:  # how hubs mark a label that is withheld
            skips.count_skipped("no label", int(column.numbers[place]), int(column.counts[place]))
            labels[place] = None
        else:
            labels[place] = tuple(final[name] for name in label)
    return labels


def _index_names(
    present: set[str], named: tuple[str, ...], given: tuple[str, ...] | None
) -> dict[str, str]:
    """Map indices, as text, to class names; {} where the column holds names itself."""
    names: tuple[str, ...] = ()
    given = given and tuple(map(clean_name, given))
    if named:
        names = named if given is None or set(named) <= set(given) else given
    elif given is not None and not present & set(given):
        names = given
    return {str(index): name for index, name in enumerate(names)}
