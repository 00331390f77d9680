"""Figures of the test rows for each value of a column, as language: where a model fails."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from trainers.config.metrics import lower_is_better
from trainers.config.recipe import Recipe
from trainers.data.rows.own_splits import resolve_held_out
from trainers.data.sources import read_slices
from trainers.data.splits import SplitName
from trainers.evaluation.held_out import HeldOut
from trainers.evaluation.intervals import Answers, bootstrap_intervals, compute_figures

MAX_VALUES = 20  # of a column, those with the most rows
DIGITS = 6
MISSING = "(missing)"

Slices = dict[str, list[dict[str, Any]]]


def load_slices(recipe: Recipe, rows: HeldOut) -> dict[str, list[str]]:
    """Return the cells of each column of data.slices, of the kept test rows in their order.

    {} where the recipe names none, or the source cannot be read again as it was.
    """
    if not recipe.data.slices or not len(rows):
        return {}
    data, _ = resolve_held_out(recipe.data, labelled=recipe.task != "masked-lm")
    source = rows.origin.rpartition(" ")[0]  # without the unit that rows are counted in
    part: SplitName = "train" if source == data.source and data.test != source else "test"
    try:
        cells = read_slices(source, data, part, rows.numbers)
        found = [cells[number] for number in rows.numbers]
    except (BerthaError, OSError, KeyError):
        return {}
    return {
        column: [cell or MISSING for cell in texts]
        for column, texts in zip(data.slices, zip(*found, strict=True), strict=True)
    }


def measure_slices(columns: Mapping[str, Sequence[str]], answers: Answers, metric: str) -> Slices:
    """Return of each column the values with rows, metric and its 95% interval, the worst first."""
    return {column: _measure_column(cells, answers, metric) for column, cells in columns.items()}


def _measure_column(cells: Sequence[str], answers: Answers, metric: str) -> list[dict[str, Any]]:
    found, places = [], np.array(cells)
    for value, rows in Counter(cells).most_common(MAX_VALUES):
        kept = np.flatnonzero(places == value)
        part = replace(answers, outputs=answers.outputs[kept], targets=answers.targets[kept])
        figure = compute_figures(part, [metric])[metric]
        low, high = bootstrap_intervals(part, names=[metric])[metric]
        numbers = {"value": figure, "low": min(low, figure), "high": max(high, figure)}
        figures = {name: float(f"{number:.{DIGITS}g}") for name, number in numbers.items()}
        found.append({"value": value, "rows": rows, "figure": figures})
    sign = -1 if lower_is_better(metric) else 1
    return sorted(found, key=lambda each: (sign * each["figure"]["value"], -each["rows"]))
