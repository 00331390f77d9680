"""Counts of rows that are left out, and of those that are kept but look wrong."""

import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Columns = Mapping[str, str]  # a wanted column and the setting that asks for it
Row = tuple[int, tuple[Any, ...]]  # its number in the file, its values in the order of the columns
Require = Callable[[str, Columns, Collection[str]], None]  # raises for columns that are not there


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
        # Of each file of several: the number before its first row, and what its own are called.
        self._starts: list[int] = []
        self._names: list[str] = []

    def begin_file(self, name: str, start: int) -> None:
        """Call the rows after `start` by a name, as "b.csv line", and their number in the file."""
        self._starts.append(start)
        self._names.append(name)

    def name_row(self, number: int) -> str:
        """Return the place of a row, as "line 7" or, of several files, "b.csv line 7"."""
        file = bisect.bisect_left(self._starts, number) - 1
        if file < 0:
            return f"{self.unit} {number}"
        return f"{self._names[file]} {number - self._starts[file]}"

    def add_file(self, name: str, found: "SkipCounter") -> None:
        """Add what was counted in one of several files."""
        for ours, theirs in ((self._by_reason, found._by_reason), (self._noted, found._noted)):
            for skip in theirs.values():
                first = SkippedRows(skip.reason, 0, f"{name} {skip.first}")
                known = ours.setdefault(skip.reason, first)
                ours[skip.reason] = replace(known, rows=known.rows + skip.rows)

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
        skip = counts.setdefault(reason, SkippedRows(reason, 0, self.name_row(number)))
        counts[reason] = replace(skip, rows=skip.rows + rows)
