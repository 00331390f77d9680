"""Tables in files: CSV, TSV, JSONL and Parquet, row by row.

What is wrong with a whole file is a DataError; what is wrong with one row is counted, and the row
is left out. Knows nothing of what the columns mean.
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
class Skip:
    """Rows left out for one reason. first: where the first of them stands, as "line 7"."""

    reason: str
    rows: int
    first: str


class Skips:
    """Counts rows that are left out, by reason. unit: what a row's number counts."""

    def __init__(self, unit: str, counted: Iterable[Skip] = ()) -> None:
        self.unit = unit
        self._by_reason = {skip.reason: skip for skip in counted}

    def add(self, reason: str, number: int, rows: int = 1) -> None:
        """Count `rows` more, the first of them at `number`."""
        known = self._by_reason.setdefault(reason, Skip(reason, 0, f"{self.unit} {number}"))
        self._by_reason[reason] = replace(known, rows=known.rows + rows)

    def all(self) -> tuple[Skip, ...]:
        """Every reason met so far, in the order they were met."""
        return tuple(self._by_reason.values())


def format_of(source: str) -> str | None:
    """csv, tsv, jsonl or parquet, by suffix; None for anything else."""
    path = Path(source.partition("?")[0] if source.startswith("http") else source)
    packed = path.suffix in PACKED
    kind = FORMATS.get(path.with_suffix("").suffix if packed else path.suffix)
    return None if packed and kind == "parquet" else kind


def unit_of(source: str) -> str:
    """What the numbers of the rows of `source` count."""
    return "row" if format_of(source) in (None, "parquet") else "line"


def read(source: str, columns: Columns, skips: Skips) -> Iterator[Row]:
    """The rows of a file, `columns` only; an absent value is None, in CSV and TSV the empty text.

    Raises DataError for a file that is absent or unreadable, not UTF-8, or without the columns.
    """
    kind = format_of(source)
    if kind == "jsonl":
        return _json_lines(source, columns, skips)
    if kind == "parquet":
        return _parquet(source, columns)
    return _delimited(source, columns, skips, "\t" if kind == "tsv" else ",")


def fingerprint(source: str) -> str:
    """The identity of what a table holds."""
    return f"{format_of(source)}:{files.fingerprint(source)}"


def require(source: str, columns: Columns, present: Collection[str]) -> None:
    """Raise a DataError that names the first of `columns` not among those present."""
    names = sorted(present)
    for column, setting in columns.items():
        if column in present:
            continue
        close = difflib.get_close_matches(column, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
            hint = "separate the columns by commas, in a .tsv by tabs; "
        raise DataError(
            f"{source}: no column {column!r}; it has {', '.join(map(repr, names))}; "
            f"{hint}set {setting}"
        )


def arrow_rows(batches: Iterable[Any], columns: Columns) -> Iterator[tuple[Any, ...]]:
    """The rows of Arrow tables or batches, values in the order of `columns`."""
    for batch in batches:
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _delimited(source: str, columns: Columns, skips: Skips, delimiter: str) -> Iterator[Row]:
    """CSV with the quotes that RFC 4180 and pandas write; a blank line is no row."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with files.text_of(source, newline="") as text:
            rows = _whole_rows(csv.reader(text, delimiter=delimiter, strict=True), skips)
            _, header = next(rows, (0, []))
            places = _places(source, columns, header) if header else []
            for number, fields in rows:
                if len(fields) == len(header):
                    yield number, tuple(fields[place] for place in places)
                else:
                    skips.add("wrong number of fields", number)
    finally:
        csv.field_size_limit(limit)


def _places(source: str, columns: Columns, header: list[str]) -> list[int]:
    """Where each of `columns` stands in the header."""
    if "\0" in "".join(header):
        way_out = files.how_to_convert("UTF-16")
        raise DataError(f"{source}: its first line holds NUL bytes; {way_out}")
    require(source, columns, header)
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise DataError(f"{source}: several columns are called {twice[0]!r}; rename all but one")
    return [header.index(column) for column in columns]


def _whole_rows(reader: Any, skips: Skips) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line each starts on. Lines that quotes break are counted line by line."""
    while True:
        before = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            skips.add("broken quotes", before + 1, reader.line_num - before)
            continue
        if fields:
            yield before + 1, fields


def _json_lines(source: str, columns: Columns, skips: Skips) -> Iterator[Row]:
    seen: set[str] = set()
    with files.text_of(source, newline="\n") as text:
        for number, line in enumerate(text, 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                skips.add("not JSON", number)
                continue
            if not isinstance(record, dict):
                skips.add("not a JSON object", number)
                continue
            if not columns.keys() <= seen:
                seen.update(record)
            yield number, tuple(record.get(column) for column in columns)
    if seen:
        require(source, columns, seen)


def _parquet(source: str, columns: Columns) -> Iterator[Row]:
    with files.opened(source) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        require(source, columns, table.schema_arrow.names)
        batches = table.iter_batches(batch_size=1024, columns=list(columns))
        try:
            yield from enumerate(arrow_rows(batches, columns), 1)
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: holds text that is not UTF-8: {error}") from None
