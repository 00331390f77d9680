"""Checks of a label column that was parsed: is it classes at all, and is it read as it is meant."""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data.files import DataError
from trainers.data.rows.label_cells import (
    NO_TRUTH,
    SEVERAL_ONES,
    Label,
    clean_name,
    flatten_labels,
    means_missing,
)
from trainers.data.rows.label_column import LabelColumn
from trainers.data.rows.label_names import find_separator

_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
_MANY_CLASSES = 20  # of decimal fractions
_SUSPICIOUS_SHARE = 0.01  # of the rows, that show that a column is something else
_MANY_MISSING = 0.05  # of the rows, whose text may be a class
_MIN_ROWS = 10  # fewer say nothing of what a column holds


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
    distinct, rows = set(flatten_labels(labels)), int(counts.sum())
    are_numbers = all(map(_NUMBER.fullmatch, distinct))
    are_fractions = (
        are_numbers and len(distinct) > _MANY_CLASSES and any("." in d for d in distinct)
    )
    nearly = len(distinct) == rows or (rows >= 2 * _MIN_ROWS and len(distinct) > 0.8 * rows)
    if rows < _MIN_ROWS or not (nearly or are_fractions):
        return
    number = "a number to predict (then set task=regression) or " if are_numbers else ""
    raise DataError(
        f"{source}: column {data.label!r} holds {len(distinct):,} different values in {rows:,} "
        f"rows, as {min(distinct)[:60]!r}: is it {number}an id (then set data.label to the column "
        "of classes)? If they are classes, name them all in data.labels"
    )


def check_training_labels(labels: Iterable[Label], task: Task) -> None:
    """Raise DataError where the distinct `labels` of the training rows leave nothing to learn."""
    if task in ("regression", "masked-lm"):
        return
    present = set(flatten_labels(labels))
    if task == "classification" and len(present) < 2:
        raise DataError(
            f"all training rows have the label {min(present)[:60]!r}; a classifier needs two. "
            "Is data.label the right column, and does data.filter keep both?"
        )
    if not present:
        raise DataError("no training row has a label; is data.label the right column?")


def check_reasons(
    column: LabelColumn, reasons: Sequence[str], data: DataConfig, locate: Callable[[int], str]
) -> None:
    """Raise DataError where too many rows show that the column is something else."""
    for reason in (SEVERAL_ONES, NO_TRUTH):
        places = [place for place, each in enumerate(reasons) if each == reason]
        rows, total = int(column.counts[places].sum()), int(column.counts.sum())
        if not places or rows < _SUSPICIOUS_SHARE * total:
            continue
        way_out = "give 0 or 1, round probabilities first, or leave that column out of data.label"
        if reason == SEVERAL_ONES:
            way_out = "set task=multi-label, or leave one 1 in each"
        shown = f"{column.values[places[0]]!r:.60}"
        raise DataError(
            f"{locate(places[0])}: {', '.join(data.label_columns)} = {shown}: {reason}, in "
            f"{rows:,} of {total:,} rows; {way_out}"
        )


def note_missing(
    column: LabelColumn, labels: Sequence[Label | None], data: DataConfig
) -> tuple[str, ...]:
    """Return a note on texts that are read as no label in so many rows that they may be a class."""
    found = [
        place
        for place, (value, label) in enumerate(zip(column.values, labels, strict=True))
        if label is None and means_missing(value, data)
    ]
    rows, total = int(column.counts[found].sum()), int(column.counts.sum())
    if not found or rows < _MANY_MISSING * total:
        return ()
    texts = ", ".join(repr(name) for name in sorted({clean_name(column.values[p]) for p in found}))
    return (
        f"{rows:,} of {total:,} rows have no label but {texts}; where that is a class, name all "
        "classes in data.labels, or set data.missing=[]",
    )


def check_separator(
    labels: Sequence[Label | None], task: Task, data: DataConfig
) -> tuple[str, ...]:
    """Raise DataError where labels are evidently separated by something else than is set.

    Of a classification, which has one label a row, it is a note.
    """
    found = find_separator(set(flatten_labels(labels))) if data.labels is None else None
    if found is None:
        return ()
    mark, example = found
    what = f"column {data.label!r} holds {example[:60]!r}, and its parts elsewhere too"
    if task == "multi-label":
        raise DataError(
            f"{what}: set data.label_separator={mark!r}; where it is one label, name the classes "
            "in data.labels"
        )
    return (f"{what}: several labels a row are task=multi-label data.label_separator={mark!r}",)
