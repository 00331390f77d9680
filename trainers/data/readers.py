"""Tables in files: CSV, TSV, JSONL and Parquet, row by row.

What is wrong with a whole file is a DataError; a row that is wrong is counted and left out.
"""

import csv
import difflib
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet

from trainers.data import files
from trainers.data.files import DataError

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
PACKED = (".gz", ".bz2", ".xz")
Columns = Mapping[str, str]  # a wanted column and the setting that asks for it
Row = tuple[int, tuple[Any, ...]]  # its number in the file, its values in the order of the columns


@dataclass(frozen=True)
class SkippedRows:
    """Rows left out for one reason. first: the place of the first of them, as "line 7"."""

    reason: str
    rows: int
    first: str


class SkipCounter:
    """Counts rows that are left out, by reason. unit: "line" or "row"."""

    def __init__(self, unit: str, counted: Iterable[SkippedRows] = ()) -> None:
        self.unit = unit
        self._by_reason = {skip.reason: skip for skip in counted}

    def count_skipped(self, reason: str, number: int, rows: int = 1) -> None:
        """Count `rows` more, the first of them at `number`."""
        skip = self._by_reason.setdefault(reason, SkippedRows(reason, 0, f"{self.unit} {number}"))
        self._by_reason[reason] = replace(skip, rows=skip.rows + rows)

    def list_reasons(self) -> tuple[SkippedRows, ...]:
        """List the reasons so far, in their order."""
        return tuple(self._by_reason.values())


def table_format(source: str) -> str | None:
    """Return csv, tsv, jsonl or parquet, by suffix; None for anything else."""
    path = Path(source.partition("?")[0] if source.startswith("http") else source)
    packed = path.suffix.lower() in PACKED
    kind = FORMATS.get((path.with_suffix("") if packed else path).suffix.lower())
    return None if packed and kind == "parquet" else kind


def row_unit(source: str) -> str:
    """Return what the numbers of the rows of `source` count."""
    return "row" if table_format(source) in (None, "parquet") else "line"


def read_rows(source: str, columns: Columns, skips: SkipCounter) -> Iterator[Row]:
    """Iterate over `columns` of a file; an absent value is None, in CSV and TSV the empty text.

    Raises DataError for a file that is absent or unreadable, not UTF-8, or without the columns.
    """
    kind = table_format(source)
    if kind == "jsonl":
        return _read_jsonl(source, columns, skips)
    if kind == "parquet":
        return _read_parquet(source, columns)
    return _read_delimited(source, columns, skips, "\t" if kind == "tsv" else ",")


def read_header(source: str) -> tuple[str, ...]:
    """Return the names of the columns of a CSV or TSV file, in order; () of an empty one.

    Raises DataError as `read_rows` does.
    """
    delimiter = "\t" if table_format(source) == "tsv" else ","
    with files.open_text(source, newline="") as text:
        try:
            header = next(filter(None, csv.reader(text, delimiter=delimiter, strict=True)), [])
        except csv.Error as error:
            raise DataError(f"{source}: its first line cannot be read: {error}") from None
    return tuple(header)


def table_fingerprint(source: str) -> str:
    """Identify the contents of a table."""
    return f"{table_format(source)}:{files.file_fingerprint(source)}"


def require_columns(source: str, columns: Columns, present: Collection[str]) -> None:
    """Raise DataError that names the first of `columns` not among those present."""
    names = sorted(present)
    for column, setting in columns.items():
        if column in present:
            continue
        marks = [mark for mark in ";\t|" if mark in names[0]] if len(names) == 1 else []
        if marks:
            raise DataError(
                f"{source}: its columns are separated by {marks[0]!r} and not by commas: its first "
                f"line is {names[0][:80]!r}; save it with commas, or with tabs as a .tsv"
            )
        close = difflib.get_close_matches(column, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(
            f"{source}: no column {column!r}; it has {', '.join(map(repr, names))}; "
            f"{hint}set {setting}"
        )


def iter_arrow_rows(batches: Iterable[Any], columns: Columns) -> Iterator[tuple[Any, ...]]:
    """Iterate over rows of Arrow tables or batches, values in the order of `columns`."""
    for batch in batches:
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _read_delimited(
    source: str, columns: Columns, skips: SkipCounter, delimiter: str
) -> Iterator[Row]:
    """Read CSV with the quotes that RFC 4180 and pandas write; a blank line is no row."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with files.open_text(source, newline="") as text:
            rows = _iter_rows(csv.reader(text, delimiter=delimiter, strict=True), skips)
            _, header = next(rows, (0, []))
            indices = _column_indices(source, columns, header) if header else []
            for number, fields in rows:
                if len(fields) == len(header):
                    yield number, tuple(fields[index] for index in indices)
                else:
                    skips.count_skipped("wrong number of fields", number)
    finally:
        csv.field_size_limit(limit)


def _column_indices(source: str, columns: Columns, header: list[str]) -> list[int]:
    """Return the index of each of `columns` in the header."""
    if "\0" in "".join(header):
        way_out = files.conversion_hint("UTF-16")
        raise DataError(f"{source}: its first line holds NUL bytes; {way_out}")
    require_columns(source, columns, header)
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise DataError(f"{source}: several columns are called {twice[0]!r}; rename all but one")
    return [header.index(column) for column in columns]


def _iter_rows(reader: Any, skips: SkipCounter) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with the line each starts on. Lines that quotes break are counted as skipped."""
    while True:
        before = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            skips.count_skipped("broken quotes", before + 1, reader.line_num - before)
            continue
        if fields:
            yield before + 1, fields


def read_records(source: str, skips: SkipCounter) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over the objects of a JSONL file, each with its line. Raises DataError."""
    with files.open_text(source, newline="\n") as text:
        for number, line in enumerate(text, 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                skips.count_skipped("not JSON", number)
                continue
            if not isinstance(record, dict):
                skips.count_skipped("not a JSON object", number)
                continue
            yield number, record


def _read_jsonl(source: str, columns: Columns, skips: SkipCounter) -> Iterator[Row]:
    seen: set[str] = set()
    for number, record in read_records(source, skips):
        if not columns.keys() <= seen:
            seen.update(record)
        yield number, tuple(record.get(column) for column in columns)
    if seen:
        require_columns(source, columns, seen)


def _read_parquet(source: str, columns: Columns) -> Iterator[Row]:
    with files.open_binary(source) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        require_columns(source, columns, table.schema_arrow.names)
        batches = table.iter_batches(batch_size=1024, columns=list(columns))
        try:
            yield from enumerate(iter_arrow_rows(batches, columns), 1)
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: holds text that is not UTF-8: {error}") from None
