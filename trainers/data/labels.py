"""Labels: parse a label column, and build the targets that a model learns.

The one place that knows that a column may hold names, indices, `1.0` for 1, several labels in one
cell, vectors of 0 and 1, what means missing, or numbers to predict.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.recipe import Task
from trainers.config.sections import DataConfig
from trainers.data.files import DataError
from trainers.data.rows.label_cells import as_list, clean_name, find_vectors, read_truth
from trainers.data.rows.skips import SkipCounter
from trainers.data.sources import is_missing

# The classes of a row (one for classification, none for masked-lm), or the number to predict.
Label = tuple[str, ...] | float

_WHOLE = re.compile(r"(-?[0-9]{1,15})(?:\.0+)?")
_NUMBERED = re.compile(r"-?[0-9]{1,15}|label_[0-9]{1,15}")
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
_SEPARATORS = (",", ";", "/", "|")
_RARE = 20  # times as many rows has the name that a misspelt one was meant to be
_MAX_COMPARED = 200
_MAX_SHOWN = 20
_MIN_ROWS = 10  # fewer say nothing of what a column holds
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LabelColumn:
    """The cells of a label column, each distinct one once, in the order of their first rows.

    values: raw cells: str, int, float, bool, list or None, or a tuple of them where data.label
    names several columns. counts: `[d]` int64, the rows that hold each. numbers: `[d]` int64, of
    the first such row. names: of a column of class indices, if the
    source names them.
    """

    values: list[Any]
    counts: np.ndarray
    numbers: np.ndarray
    names: tuple[str, ...] = ()

    @classmethod
    def from_cells(
        cls, cells: Sequence[Any], numbers: Sequence[int], names: tuple[str, ...] = ()
    ) -> tuple["LabelColumn", np.ndarray]:
        """Collect the distinct ones of `cells`; return also which of them each is, `[n]` int32."""
        interner = CellInterner()
        codes = np.array([interner.intern_cell(cell) for cell in cells], dtype=np.int32)
        return interner.build_column(codes, np.array(numbers, dtype=np.int64), names)


class CellInterner:
    """Numbers distinct label cells from 0, in the order in which they are met."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._codes: dict[Any, int] = {}

    def intern_cell(self, cell: Any) -> int:
        """Return the number of a cell; 1, 1.0, True and "1" are four."""
        key = cell if isinstance(cell, str) else (type(cell).__name__, repr(cell))
        code = self._codes.setdefault(key, len(self.values))
        if code == len(self.values):
            self.values.append(cell)
        return code

    def build_column(
        self, codes: np.ndarray, numbers: np.ndarray, names: tuple[str, ...] = ()
    ) -> tuple[LabelColumn, np.ndarray]:
        """Return the column of the rows that hold the cells `codes` `[n]`, and their new codes.

        numbers: `[n]` of those rows. Cells that no row holds are left out.
        """
        counts = np.bincount(codes, minlength=len(self.values))
        first = np.zeros(len(counts), dtype=np.int64)
        first[codes[::-1]] = np.arange(len(codes))[::-1]  # of several rows the first stays
        present = np.flatnonzero(counts)
        present = present[np.argsort(first[present])]
        places = np.zeros(len(counts), dtype=np.int32)
        places[present] = np.arange(len(present), dtype=np.int32)
        values = [self.values[code] for code in present.tolist()]
        column = LabelColumn(values, counts[present], numbers[first[present]], names)
        return column, places[codes]


def parse_labels(
    column: LabelColumn, task: Task, data: DataConfig, skips: SkipCounter
) -> tuple[list[Label | None], tuple[str, ...]]:
    """Parse each cell of a column; None, and its rows counted in `skips`, where it has no use.

    Returns notes for the data report as well. A column of whole numbers written as floats (1.0) is
    read as whole numbers. Where data.labels or the source names the classes and the column holds
    indices from 0, these become names; a column of vectors of 0 and 1 has a class a place, by
    default `label_0` and so on. Not for masked-lm, which has no labels. Raises DataError where the
    column can be read in several ways.
    """
    cells, numbers = column.values, column.numbers.tolist()
    given = None if data.labels is None else tuple(map(clean_name, data.labels))
    vectors, length = find_vectors(cells, numbers, _name_column(data), given)
    names = given or (column.names if len(column.names) == length else ())
    names = names or tuple(f"label_{place}" for place in range(length))
    labels: list[Label | None] = []
    for place, (value, count, number) in enumerate(
        zip(cells, column.counts.tolist(), numbers, strict=True)
    ):
        label, reason = _parse_cell(value, vectors.get(place), names, task, data)
        if label is None:
            skips.count_skipped(reason, number, count)
        labels.append(label)
    if vectors:
        return labels, (f"column {_name_column(data)!r} holds vectors of {length} numbers 0 and 1",)
    if isinstance(data.label, str):
        _check_separator(labels, task, data)
        labels = _resolve_names(labels, column, data, skips)
    return labels, _similar_names(labels, column.counts)


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
    labels, _ = parse_labels(column, task, data, skips)
    return [labels[code] for code in codes]


def parse_number(cell: Any, data: DataConfig) -> tuple[float | None, str]:
    """Parse one cell of a regression's label column; None, and the reason, for one without use."""
    if _means_missing(cell, data):
        return None, f"label {cell!r} (data.missing)"
    if is_missing(cell):
        return None, "no label"
    try:
        number = float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    return (number, "") if abs(number) <= _LARGEST else (None, "label is not a finite number")


def check_label_column(
    labels: Sequence[Label], counts: np.ndarray, task: Task, data: DataConfig, source: str
) -> None:
    """Raise DataError where the labels of a source are hardly classes but numbers, ids or texts.

    labels: the distinct ones; counts: `[d]` the rows of each. It is an error where nearly each row
    has another value, or where they are many decimal fractions. data.labels, which names the
    classes, vouches for them.
    """
    texts = (data.text,) if isinstance(data.text, str) else data.text
    twice = set(texts) & set(data.label_columns)
    if task != "masked-lm" and twice:
        raise DataError(
            f"{source}: data.text and data.label are the same column, {min(twice)!r}; set "
            "data.label to the column to be learned"
        )
    if task in ("regression", "masked-lm") or data.labels is not None:
        return
    if not isinstance(data.label, str):
        return
    distinct, rows = set(_flatten(labels)), int(counts.sum())
    are_numbers = all(map(_NUMBER.fullmatch, distinct))
    are_fractions = are_numbers and len(distinct) > _MAX_SHOWN and any("." in d for d in distinct)
    nearly = len(distinct) == rows or (rows >= 2 * _MIN_ROWS and len(distinct) > 0.8 * rows)
    if rows < _MIN_ROWS or not (nearly or are_fractions):
        return
    number = "a number to predict (then set task=regression) or " if are_numbers else ""
    raise DataError(
        f"{source}: column {data.label!r} holds {len(distinct):,} different values in {rows:,} "
        f"rows, as {min(distinct)[:60]!r}: is it {number}an id (then set data.label to the column "
        "of classes)? If they are classes, name them all in data.labels"
    )


def class_names(
    labels: Iterable[Label], task: Task, given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the class names in order: `given`, or those of all rows.

    labels: the distinct ones. () for regression and masked-lm.
    """
    if task in ("regression", "masked-lm"):
        return ()
    if given is not None:
        return tuple(map(clean_name, given))
    present = set(_flatten(labels))
    if all(map(_NUMBERED.fullmatch, present)):
        return tuple(sorted(present, key=lambda name: int(name.removeprefix("label_"))))
    return tuple(sorted(present))


def check_training_labels(labels: Iterable[Label], task: Task) -> None:
    """Raise DataError where the distinct `labels` of the training rows leave nothing to learn."""
    if task in ("regression", "masked-lm"):
        return
    present = set(_flatten(labels))
    if task == "classification" and len(present) < 2:
        raise DataError(
            f"all training rows have the label {min(present)[:60]!r}; a classifier needs two. "
            "Is data.label the right column, and does data.filter keep both?"
        )
    if not present:
        raise DataError("no training row has a label; is data.label the right column?")


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
    pairs = [(row, name) for row, label in enumerate(labels) for name in _flatten([label])]
    for row, name in pairs:
        if name not in index:
            raise _unknown_label_error(name, locate_row(row), names)
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
        for name in _flatten([label]) if count else ():
            found[name] += count
    return found


def _unknown_label_error(name: str, place: str, names: tuple[str, ...]) -> DataError:
    known = ", ".join(map(repr, names[:_MAX_SHOWN])) + (", ..." if len(names) > _MAX_SHOWN else "")
    return DataError(
        f"{place}: label {name[:60]!r} is not one of {known}. The classes are data.labels, "
        "by default those of all rows: fix the row, or name every class in data.labels"
    )


def _flatten(labels: Iterable[Label | None]) -> list[str]:
    return [name for label in labels if isinstance(label, tuple) for name in label]


def _name_column(data: DataConfig) -> str:
    return ", ".join(data.label_columns)


def _means_missing(value: Any, data: DataConfig) -> bool:
    """Return whether a cell is a text that stands for nothing, and is no class of data.labels."""
    if not isinstance(value, str) or value.strip() not in data.missing:
        return False
    return data.labels is None or value.strip() not in data.labels


def _parse_cell(
    value: Any, vector: list[int] | None, names: tuple[str, ...], task: Task, data: DataConfig
) -> tuple[Label | None, str]:
    """Return the label in a cell, or None and the reason why not."""
    if isinstance(value, tuple):
        return _parse_columns(value, task, data)
    if vector is not None:
        found = tuple(name for name, item in zip(names, vector, strict=True) if item)
        if task == "classification" and len(found) != 1:
            return None, f"vector with {len(found)} times 1 (task: multi-label?)"
        return found, ""
    if _means_missing(value, data):
        return None, f"label {value!r} (data.missing)"
    if task == "classification":
        return _parse_single(value)
    return _parse_multiple(value, data.label_separator)


def _parse_columns(
    cells: tuple[Any, ...], task: Task, data: DataConfig
) -> tuple[Label | None, str]:
    """Parse a row of label columns, each 0 or 1."""
    truths = []
    for name, cell in zip(data.label_columns, cells, strict=True):
        if is_missing(cell) or _means_missing(cell, data):
            return None, f"no label in column {name!r}"
        truth = read_truth(cell)
        if truth is None:
            return None, f"column {name!r} holds {str(cell)[:40]!r} and not 0 or 1"
        truths.append(truth)
    found = tuple(name for name, truth in zip(data.label_columns, truths, strict=True) if truth)
    if task == "classification" and len(found) != 1:
        return None, f"1 in {len(found)} label columns (task: multi-label?)"
    return found, ""


def _parse_single(value: Any) -> tuple[Label | None, str]:
    if isinstance(value, (list, dict)):
        return None, "label is a list (task: multi-label?)"
    name = "" if is_missing(value) else clean_name(value)
    return ((name,), "") if name else (None, "no label")


def _parse_multiple(value: Any, separator: str) -> tuple[Label | None, str]:
    """Parse `a|b`, a list, or the text of a list; an empty one is a row without labels."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = as_list(value)
            if value is None:
                return None, "label is no list of JSON or Python"
        else:
            value = value.split(separator)
    elif is_missing(value):
        return None, "no label"
    items = value if isinstance(value, list) else [value]
    names = (clean_name(item) for item in items if not is_missing(item))
    return tuple(dict.fromkeys(filter(None, names))), ""


def _check_separator(labels: Sequence[Label | None], task: Task, data: DataConfig) -> None:
    """Raise DataError where labels are evidently separated by something else than is set.

    That is where parts of them recur, on their own or beside others.
    """
    if task != "multi-label" or data.labels is not None:
        return
    names = set(_flatten(labels))
    for mark in _SEPARATORS:
        joined = [name for name in names if mark in name]
        parts = Counter(part.strip() for name in names for part in name.split(mark))
        recurring = [name for name in joined if all(parts[p.strip()] > 1 for p in name.split(mark))]
        if len(joined) >= 2 and len(recurring) > len(joined) / 2 and len(parts) < len(names):
            raise DataError(
                f"column {data.label!r} holds {min(recurring)[:60]!r}, and its parts elsewhere "
                f"too: set data.label_separator={mark!r}; where it is one label, name the classes "
                "in data.labels"
            )


def _similar_names(labels: Sequence[Label | None], counts: np.ndarray) -> tuple[str, ...]:
    """Return notes on classes that may be one by mistake."""
    rows: Counter[str] = Counter()
    for label, count in zip(labels, counts.tolist(), strict=True):
        for name in _flatten([label]):
            rows[name] += count
    folded: dict[str, list[str]] = {}
    for name in rows:
        folded.setdefault(" ".join(name.casefold().split()), []).append(name)
    notes = [
        f"labels {', '.join(map(repr, sorted(each)))} differ in case or blanks only: one class?"
        for each in folded.values()
        if len(each) > 1
    ]
    if len(folded) <= _MAX_COMPARED:
        notes += _misspelt_names(
            {name: sum(rows[n] for n in each) for name, each in folded.items()}
        )
    return tuple(notes[:_MAX_SHOWN])


def _misspelt_names(rows: dict[str, int]) -> list[str]:
    """Return a note on each rare name that is nearly a frequent one; digits never are."""
    found = []
    for name, count in rows.items():
        if len(name) < 4 or any(map(str.isdigit, name)):
            continue
        frequent = [other for other in rows if rows[other] >= _RARE * count]
        close = difflib.get_close_matches(name, frequent, n=1, cutoff=0.86)
        if close:
            found.append(f"label {name!r} ({count} rows) is nearly {close[0]!r}: one class?")
    return found


def _resolve_names(
    labels: list[Label | None], column: LabelColumn, data: DataConfig, skips: SkipCounter
) -> list[Label | None]:
    """Write whole numbers without decimals, and replace indices by their class names."""
    present = set(_flatten(labels))
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
