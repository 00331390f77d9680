"""Read one source: its texts cleaned and put on disk, its labels parsed, all else counted."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from trainers.config.recipe import Recipe
from trainers.data import labels as labelling
from trainers.data import sources
from trainers.data.files import DataError
from trainers.data.labels import Label, ParsedColumn
from trainers.data.rows.label_column import CellInterner, LabelColumn
from trainers.data.rows.skips import SkipCounter, SkippedRows
from trainers.data.rows.spilled_texts import SpilledTexts, TextSpill, TextWriter
from trainers.data.sources import RowStream
from trainers.data.splits import SplitName, text_hash

REPORT_ROWS = 1000  # read between two reports of progress
MAX_CLASSES = 1_000_000

OnRows = Callable[[int], None]  # called with the number of rows read so far


class CodedLabels(Sequence[Label]):
    """The labels of rows: row i has values[codes[i]]. codes: `[n]` integers.

    Of a regression, values are the numbers `[n]` float64 themselves and codes their places.
    """

    def __init__(self, values: Sequence[Label] | np.ndarray, codes: np.ndarray) -> None:
        self.values, self.codes = values, codes

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, row: int) -> Label: ...
    @overload
    def __getitem__(self, row: slice) -> list[Label]: ...
    def __getitem__(self, row: int | slice) -> Label | list[Label]:
        """Return the label of a row, or those of a slice."""
        if not isinstance(row, slice):
            label: Label = self.values[int(self.codes[row])]
            return label
        if isinstance(self.values, np.ndarray):
            numbers: list[Label] = self.values[self.codes[row]].tolist()
            return numbers
        return [self.values[code] for code in self.codes[row]]

    @property
    def counts(self) -> np.ndarray:
        """The rows that have each of `values`, `[d]` int64."""
        return np.bincount(self.codes, minlength=len(self.values))

    def take(self, rows: slice | np.ndarray) -> "CodedLabels":
        """Return the labels of `rows`: a slice, places, or a mask `[n]`."""
        return CodedLabels(self.values, self.codes[rows])


@dataclass(frozen=True)
class SplitRows:
    """Cleaned rows; row i is `origin` numbers[i], as in "data.csv line" 7.

    texts, labels: lists, or on disk and coded. hashes: `[n]` uint64, `text_hash` of each text.
    name_row: of a source of several files, where a row stands in them.
    """

    origin: str
    texts: Sequence[str]
    labels: Sequence[Label]
    hashes: np.ndarray
    numbers: np.ndarray
    name_row: Callable[[int], str] | None = None

    def locate_row(self, row: int) -> str:
        """Name the place of a row, for error messages."""
        if self.name_row is not None:
            return f"{self.origin.rpartition(' ')[0]} {self.name_row(int(self.numbers[row]))}"
        return f"{self.origin} {self.numbers[row]}"

    def filter_rows(self, keep: np.ndarray) -> "SplitRows":
        """Return the rows `keep`: a mask `[n]`, or places."""
        if keep.dtype == bool and keep.all():
            return self
        texts, labels = self.texts, self.labels
        assert isinstance(texts, SpilledTexts) and isinstance(labels, CodedLabels)
        return replace(
            self,
            texts=texts.take(keep),
            labels=labels.take(keep),
            hashes=self.hashes[keep],
            numbers=self.numbers[keep],
        )


@dataclass(frozen=True)
class SourceCounts:
    """The number of rows that were read of a source, and counts of those that cannot be used.

    notes: for the data report, on its labels. places: the classes of a column of vectors, () of
    any other.
    """

    num_read: int
    skipped: tuple[SkippedRows, ...]
    notes: tuple[str, ...]
    places: tuple[str, ...]


def read_usable_rows(
    source: str,
    part: SplitName,
    recipe: Recipe,
    clean: Callable[[str], str],
    spill: TextSpill,
    on_rows: OnRows,
) -> tuple[SplitRows, SourceCounts]:
    """Return the rows of `source` that have a text and a label. Raises DataError for none."""
    stream = sources.open_source(source, recipe.data, part, labelled=recipe.task != "masked-lm")
    found = _FoundRows(recipe, spill)
    found.read_stream(stream, clean, on_rows)
    skips = stream.skips
    num_read = len(found.numbers) + sum(skip.rows for skip in skips.list_reasons())
    max_rows = recipe.data.max_rows if part == "train" else None
    mask = sources.thin_rows(found.numbers, max_rows, skips)
    kept = slice(None) if mask.all() else mask  # a slice copies nothing
    column, codes = found.cells.build_column(
        found.codes[kept], found.numbers[kept], stream.label_names
    )
    try:
        parsed = found.parse_column(column, skips)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    labels = parsed.labels
    rows = SplitRows(
        f"{source} {stream.unit}",
        found.texts.take(kept),
        CodedLabels(*found.code_labels(labels, codes, kept)),
        found.hashes[kept],
        found.numbers[kept],
        skips.name_row,
    )
    has_label = np.array([label is not None for label in labels], dtype=bool)[codes]
    has_text = found.texts.sizes[kept] > 0
    lacking = np.flatnonzero(has_label & ~has_text)
    if len(lacking):
        skips.count_skipped("no text", int(rows.numbers[lacking[0]]), len(lacking))
    rows = rows.filter_rows(has_label & has_text)
    reasons = skips.list_reasons()
    if not len(rows.hashes):
        why = "; ".join(f"{skip.reason}: {skip.rows} rows" for skip in reasons)
        cells = column.values if recipe.task != "regression" else [found.no_number]
        way_out = _way_out(recipe, cells)
        raise DataError(f"{source}: no row can be used; {why}{way_out}")
    if part != "train":
        reasons = tuple(replace(skip, reason=f"{part}: {skip.reason}") for skip in reasons)
    notes = parsed.notes + skips.list_notes()
    return rows, SourceCounts(num_read, reasons, notes, parsed.places)


class _FoundRows:
    """Rows as a stream gives them, in compact arrays: cleaned, but with raw labels.

    Of a regression each label is parsed at once, because there may be as many as rows, and the
    cells are the reasons why one cannot be used, "" for none.
    """

    def __init__(self, recipe: Recipe, spill: TextSpill) -> None:
        self._recipe, self._writer, self.cells = recipe, TextWriter(spill), CellInterner()
        self._hashes, self._numbers = array("Q"), array("q")
        self._codes, self._targets = array("i"), array("d")
        self.no_number: Any = None  # the first cell of a regression that is none

    def read_stream(self, stream: RowStream, clean: Callable[[str], str], on_rows: OnRows) -> None:
        """Read all rows of `stream`."""
        is_number = self._recipe.task == "regression"
        for number, raw, cell in stream:
            text = clean(raw)
            self._writer.append(text)
            self._hashes.append(text_hash(text))
            self._numbers.append(number)
            if is_number:
                cell = self._parse_number(cell)
            self._codes.append(self.cells.intern_cell(cell))
            if not len(self._numbers) % REPORT_ROWS:
                on_rows(len(self._numbers))
                self._check_cells(stream)
        on_rows(len(self._numbers))
        self.texts = self._writer.finish()
        self.hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        self.numbers = np.frombuffer(self._numbers, dtype=np.int64)
        self.codes = np.frombuffer(self._codes, dtype=np.int32)
        self.targets = np.frombuffer(self._targets, dtype=np.float64)

    def _parse_number(self, cell: Any) -> str:
        """Keep the number in a cell; return why it is none, or ""."""
        value, reason = labelling.parse_number(cell, self._recipe.data)
        self._targets.append(float("nan") if value is None else value)
        if value is None and self.no_number is None and not sources.is_missing(cell):
            self.no_number = cell
        return reason if value is None else ""

    def _check_cells(self, stream: RowStream) -> None:
        """Raise DataError before the classes of what is no column of classes fill the memory."""
        cells, data = self.cells.values, self._recipe.data
        if self._recipe.task != "classification" or len(cells) <= MAX_CLASSES:
            return
        raise DataError(
            f"{data.source}: column {data.label!r} holds over {MAX_CLASSES:,} different values up "
            f"to {stream.unit} {self._numbers[-1]}, as {str(cells[-1])[:60]!r}: is it a number to "
            "predict (then set task=regression) or an id (then set data.label to the column of "
            "classes)?"
        )

    def parse_column(self, column: LabelColumn, skips: SkipCounter) -> ParsedColumn:
        """Return the label of each distinct cell, None for one without use."""
        if self._recipe.task == "masked-lm":
            return ParsedColumn([()] * len(column.values), ())
        if self._recipe.task != "regression":
            return labelling.parse_labels(column, self._recipe.task, self._recipe.data, skips)
        for reason, count, number in zip(
            column.values, column.counts.tolist(), column.numbers.tolist(), strict=True
        ):
            if reason:
                skips.count_skipped(reason, number, count)
        return ParsedColumn([None if reason else () for reason in column.values], ())

    def code_labels(
        self, labels: Sequence[Label | None], codes: np.ndarray, kept: np.ndarray | slice
    ) -> tuple[Any, np.ndarray]:
        """Return values and codes of the `CodedLabels` of the rows `kept`."""
        if self._recipe.task == "regression":
            return self.targets[kept], np.arange(len(codes))
        # Cells that mean the same label, as 1 and "1", become one.
        places: dict[Label, int] = {}
        table = [places.setdefault(() if label is None else label, len(places)) for label in labels]
        return list(places), np.array(table, dtype=np.int32)[codes]


def _way_out(recipe: Recipe, cells: Sequence[Any]) -> str:
    """Return what to do where no row of a source has a text and a label."""
    if recipe.task == "masked-lm":
        return ""
    given = next((cell for cell in cells if not sources.is_missing(cell)), None)
    column = f"data.label = {recipe.data.label!r}"
    if given is None:
        return f". Is {column} the right column?"
    if recipe.task == "regression":
        return f". {column} holds {str(given)[:60]!r}: for classes set task=classification"
    return f". Is {column}, as {str(given)[:60]!r}, what task={recipe.task} learns?"
