"""A label column in memory: each distinct cell once, and which of them each row holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LabelColumn:
    """The cells of a label column, each distinct one once, in the order of their first rows.

    values: raw cells: str, int, float, bool, list or None, or a tuple of them where data.label
    names several columns. counts: `[d]` int64, the rows that hold each. numbers: `[d]` int64, of
    the first such row. names: of a column of class indices, if the source names
    them.
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
