"""Columns of vectors of 0 and 1, a class a place; and what only looks like one."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data.files import DataError
from trainers.data.rows.label_cells import means_missing
from trainers.data.rows.label_lists import as_list

_SHOWN = 60  # characters
_ITEM = r"[01](?:\.0*)?"


def find_vectors(
    cells: Sequence[Any], task: Task, data: DataConfig, locate: Callable[[int], str]
) -> tuple[dict[int, list[int]], int]:
    """Find the cells of a column that are vectors of 0 and 1, by place, and their length.

    It is a column of vectors where every list in it holds 0 and 1 alone and all are as long. Then
    all cells that are lists are vectors; in any other column none is. Of multi-label, `1,0,1`
    without brackets is a list as well. locate: names the row of a cell. Raises DataError where a
    list can be neither a vector nor a list of labels, because it holds 0 or 1 twice and others are
    longer or hold other values, and where vectors hold other numbers.
    """
    if not isinstance(data.label, str):
        return {}, 0
    lists = {
        place: items for place, cell in enumerate(cells) if (items := _list_items(cell, task, data))
    }
    vectors = {
        place: [int(float(item)) for item in items]
        for place, items in lists.items()
        if _is_hot(items)
    }
    lengths = {len(vector) for vector in vectors.values()}
    if len(vectors) == len(lists) and len(lengths) == 1:
        (length,) = lengths
        if length > 1 or _is_one_class(vectors.values(), data):
            _check_length(vectors, data, locate)
            return vectors, length
    _check_mixed(cells, lists, vectors, data, locate)
    _check_numbers(cells, lists, data, locate)
    return {}, 0


def _list_items(cell: Any, task: Task, data: DataConfig) -> list[Any] | None:
    """Return the items of a cell that is a list, of multi-label also of any other text."""
    items = as_list(cell)
    if items is not None or task != "multi-label" or not isinstance(cell, str):
        return items
    if not cell.strip() or means_missing(cell, data):
        return None
    for mark in (re.escape(data.label_separator), r"\s*[,;]\s*", r"\s+"):
        if cell.lstrip()[0] in "01" and re.fullmatch(rf"\s*{_ITEM}(?:{mark}{_ITEM})+\s*", cell):
            return re.split(mark, cell.strip())
    return cell.split(data.label_separator)


def _is_hot(items: list[Any]) -> bool:
    return all(
        item in (0, 1)
        if isinstance(item, (int, float))
        else isinstance(item, str) and re.fullmatch(_ITEM, item.strip()) is not None
        for item in items
    )


def _is_one_class(vectors: Collection[list[int]], data: DataConfig) -> bool:
    """Return whether vectors of one number say if a row has the only class there is."""
    if data.labels is None or len(data.labels) > 1 or data.labels[0] in ("0", "1"):
        return False
    return [1] in vectors  # as an index, 1 would be the second class


def _check_length(
    vectors: dict[int, list[int]], data: DataConfig, locate: Callable[[int], str]
) -> None:
    place, vector = next(iter(vectors.items()))
    if data.labels is not None and len(data.labels) != len(vector):
        raise DataError(
            f"{locate(place)}: column {data.label!r} holds vectors of {len(vector)} numbers, as "
            f"{vector!r:.{_SHOWN}}, but data.labels names {len(data.labels)} classes; name "
            f"{len(vector)}, or give lists of names"
        )


def _check_mixed(
    cells: Sequence[Any],
    lists: dict[int, list[Any]],
    vectors: dict[int, list[int]],
    data: DataConfig,
    locate: Callable[[int], str],
) -> None:
    """Raise DataError for a vector in a column that also holds something else."""
    for place, vector in vectors.items():
        if len(set(vector)) == len(vector):
            continue  # a list of labels holds none twice, and this may be one
        other = next(
            place
            for place, each in lists.items()
            if place not in vectors or len(each) != len(vector)
        )
        raise DataError(
            f"{locate(place)}: column {data.label!r} holds {cells[place]!r:.{_SHOWN}}, a vector of "
            f"0 and 1, but {locate(other)} holds {cells[other]!r:.{_SHOWN}}; give vectors of one "
            "length, or lists of names"
        )


def _check_numbers(
    cells: Sequence[Any],
    lists: dict[int, list[Any]],
    data: DataConfig,
    locate: Callable[[int], str],
) -> None:
    """Raise DataError for a column of vectors that hold more than 0 and 1, as probabilities do."""
    lengths = {len(items) for items in lists.values()}
    numeric = all(isinstance(item, (int, float)) for items in lists.values() for item in items)
    if len(lists) < 2 or len(lengths) != 1 or lengths == {1} or not numeric:
        return
    for place, items in lists.items():
        if len(set(items)) < len(items) or any(
            item < 0 or not float(item).is_integer() for item in items
        ):
            raise DataError(
                f"{locate(place)}: column {data.label!r} holds {cells[place]!r:.{_SHOWN}}, and "
                f"vectors of {len(items)} numbers throughout, which are no labels; in a vector of "
                "classes each is 0 or 1, so round them, or give lists of names"
            )
