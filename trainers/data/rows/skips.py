"""Counts of rows that are left out, and of those that are kept but look wrong."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Columns = Mapping[str, str]  # a wanted column and the setting that asks for it
Row = tuple[int, tuple[Any, ...]]  # its number in the file, its values in the order of the columns


@dataclass(frozen=True)
class SkippedRows:
    """Rows left out for one reason. first: the place of the first of them, as "line 7"."""

    reason: str
    rows: int
    first: str


class SkipCounter:
    """Counts rows that are left out, by reason, and notes on others. unit: "line" or "row"."""

    def __init__(self, unit: str, counted: Iterable[SkippedRows] = ()) -> None:
        self.unit = unit
        self._by_reason = {skip.reason: skip for skip in counted}
        self._noted: dict[str, SkippedRows] = {}

    def count_skipped(self, reason: str, number: int, rows: int = 1) -> None:
        """Count `rows` more, the first of them at `number`."""
        self._count(self._by_reason, reason, number, rows)

    def count_noted(self, what: str, number: int) -> None:
        """Count a row that is kept, and of which the data report says `what`."""
        self._count(self._noted, what, number, 1)

    def list_reasons(self) -> tuple[SkippedRows, ...]:
        """List the reasons so far, in their order."""
        return tuple(self._by_reason.values())

    def list_notes(self) -> tuple[str, ...]:
        """Return a line for each kind of row that was noted."""
        return tuple(
            f"{note.rows:,} rows {note.reason} (first: {note.first})"
            for note in self._noted.values()
        )

    def _count(self, counts: dict[str, SkippedRows], reason: str, number: int, rows: int) -> None:
        skip = counts.setdefault(reason, SkippedRows(reason, 0, f"{self.unit} {number}"))
        counts[reason] = replace(skip, rows=skip.rows + rows)
