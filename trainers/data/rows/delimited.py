"""CSV and TSV: delimiters, quotes, headers, and rows that a stray quote has swallowed."""

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from trainers.data import files
from trainers.data.files import UTF8, DataError
from trainers.data.rows.skips import Columns, Require, Row, SkipCounter

Quoting = Literal["auto", "quotes", "backslash", "none"]
SNIFFED_LINES = 2000
MAX_FIELD = 100_000_000  # characters; a quote that is never closed would fill the memory
MAX_CANDIDATES = 1000  # rows that are compared with the labels of the file
MAX_LABELS = 1000
SUSPICIOUS_SHARE = 0.01  # of the rows
BROKEN = "broken quotes"
SPANS_LINES = "hold a line break inside quotes"


@dataclass(frozen=True)
class Dialect:
    """How a table of text is written.

    delimiter: None for a comma, or in a .tsv a tab. quoting: "quotes" as RFC 4180 and pandas write
    them, "backslash" for those that a backslash escapes, "none" where a quote is a character like
    any other; "auto" is quotes, but between tabs only if the first lines are so. header: whether
    the first line names the columns, which are else called by their number from 1. prefix: before
    the names of these settings in messages: "data." of a recipe, "--" on a command line.
    """

    delimiter: str | None = None
    quoting: Quoting = "auto"
    encoding: str = UTF8
    header: bool = True
    prefix: str = "data."


DEFAULT_DIALECT = Dialect()


def read_delimited(
    source: str, columns: Columns, skips: SkipCounter, dialect: Dialect, require: Require
) -> Iterator[Row]:
    """Iterate over `columns` of a table; a blank line is no row.

    require: raises for columns that are not there. Rows with a line break inside quotes are noted
    in `skips`. Raises DataError for such rows that have swallowed others.
    """
    limit = csv.field_size_limit(MAX_FIELD)
    try:
        with files.open_text(source, newline="", encoding=dialect.encoding) as text:
            lines = files.iter_lines(source, text)
            reader = _RowReader(lines, skips, dialect, *_reader_options(source, dialect))
            rows = iter(reader)
            first = next(rows, None)
            if first is None:
                return
            header = first[1]
            if not dialect.header:
                rows, header = itertools.chain([first], rows), _number_columns(first[1])
            indices = _column_indices(source, columns, header, require)
            swallowed = _SwallowedRows(columns, indices, len(header), reader.delimiter)
            for number, fields in rows:
                if len(fields) != len(header):
                    skips.count_skipped("wrong number of fields", number)
                    continue
                swallowed.check_row(number, fields)
                if reader.spans_lines:
                    skips.count_noted(SPANS_LINES, number)
                yield number, tuple(fields[index] for index in indices)
            swallowed.raise_suspicious(source, skips.unit, dialect)
    finally:
        csv.field_size_limit(limit)


def read_header(source: str, dialect: Dialect) -> tuple[str, ...]:
    """Return the names of the columns, in order; () of an empty file. Raises DataError."""
    options = _reader_options(source, dialect)
    with files.open_text(source, newline="", encoding=dialect.encoding) as text:
        skips, lines = SkipCounter("line"), files.iter_lines(source, text)
        row = next(iter(_RowReader(lines, skips, dialect, *options)), None)
    if skips.list_reasons():
        raise DataError(f"{source}: its first line cannot be read: {BROKEN}")
    if row is None:
        return ()
    return tuple(row[1] if dialect.header else _number_columns(row[1]))


class _RowReader:
    """Yields rows with the line each starts on. Lines that quotes break are counted as skipped."""

    def __init__(
        self,
        lines: Iterator[str],
        skips: SkipCounter,
        dialect: Dialect,
        delimiter: str,
        quoting: Quoting,
    ) -> None:
        self._skips, self._dialect, self._last, self.delimiter = skips, dialect, "", delimiter
        self.spans_lines = False  # whether the row yielded last holds a line break
        options: dict[str, Any] = {"delimiter": delimiter, "strict": True}
        if quoting == "none":
            options |= {"quoting": csv.QUOTE_NONE}
        elif quoting == "backslash":
            options |= {"escapechar": "\\", "doublequote": False}
        self._reader = csv.reader(self._keep_last(lines), **options)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            before = self._reader.line_num
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error:
                escaped = '\\"' in self._last
                hint = f"; {self._dialect.prefix}quoting=backslash reads such" if escaped else ""
                lines = self._reader.line_num - before
                self._skips.count_skipped(BROKEN + hint, before + 1, lines)
                continue
            self.spans_lines = self._reader.line_num - before > 1
            if fields:
                yield before + 1, fields

    def _keep_last(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self._last = line
            yield line


class _SwallowedRows:
    """Finds rows inside of fields, which a stray quote has put there.

    A line inside of a field is one if it has as many fields as the header and in the place of the
    label what is a label elsewhere.
    """

    def __init__(self, columns: Columns, indices: list[int], width: int, delimiter: str) -> None:
        wanted = zip(columns.values(), indices, strict=True)
        label = [index for setting, index in wanted if setting == "data.label"]
        self._label = label[0] if len(label) == 1 else None
        self._width, self._delimiter = width, delimiter
        self._labels: set[str] = set()
        self._candidates: list[tuple[int, str, list[str]]] = []  # row, a line in it, its labels
        self._rows = 0

    def check_row(self, number: int, fields: list[str]) -> None:
        """Look at one row."""
        self._rows += 1
        if self._label is None or self._width < 2:
            return
        if len(self._labels) < MAX_LABELS:
            self._labels.add(fields[self._label].strip())
        if len(self._candidates) == MAX_CANDIDATES:
            return
        for field in fields:
            if "\n" not in field or self._delimiter not in field:
                continue
            lines = [line.split(self._delimiter) for line in field.split("\n")]
            inner = [parts for parts in lines if len(parts) == self._width]
            if inner:
                labels = [parts[self._label].strip() for parts in inner]
                self._candidates.append((number, self._delimiter.join(inner[0]), labels))
                return

    def raise_suspicious(self, source: str, unit: str, dialect: Dialect) -> None:
        """Raise DataError where too many rows hold others."""
        found = [
            (number, line)
            for number, line, labels in self._candidates
            if any(label and label in self._labels for label in labels)
        ]
        if not found or len(found) < SUSPICIOUS_SHARE * self._rows:
            return
        number, line = found[0]
        raise DataError(
            f"{source}: {len(found)} of {self._rows} rows hold others inside quotes, the first at "
            f"{unit} {number}: {line.strip()[:60]!r}; if a quote is a character like any other, "
            f"set {dialect.prefix}quoting=none; else close the quotes"
        )


def _reader_options(source: str, dialect: Dialect) -> tuple[str, Quoting]:
    """Return delimiter and quoting of a file, which are in part those of its kind."""
    name = files.zipped_name(source) if files.is_zip(source) else source
    is_tsv = ".tsv" in files.source_suffixes(name)[-2:]
    delimiter, quoting = dialect.delimiter or ("\t" if is_tsv else ","), dialect.quoting
    if quoting == "auto":
        is_plain = delimiter == "\t" and not _is_quoted(source, delimiter, dialect)
        quoting = "none" if is_plain else "quotes"
    return delimiter, quoting


def _is_quoted(source: str, delimiter: str, dialect: Dialect) -> bool:
    """Return whether the first lines of a file are quoted throughout as pandas writes them."""
    width = 0
    with files.open_text(source, newline="", encoding=dialect.encoding) as text:
        lines = itertools.islice(files.iter_lines(source, text), SNIFFED_LINES)
        try:
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                width = width or len(fields)
                is_one = all("\n" not in field or delimiter not in field for field in fields)
                if len(fields) not in (0, width) or not is_one:
                    return False
        except csv.Error as error:
            # The sample may end inside of quotes; nothing follows the last of its lines.
            return "unexpected end of data" in str(error) and next(text, None) is not None
    return True


def _number_columns(fields: list[str]) -> list[str]:
    return [str(place) for place in range(1, len(fields) + 1)]


def _column_indices(
    source: str, columns: Columns, header: list[str], require: Require
) -> list[int]:
    """Return the index of each of `columns` in the header."""
    if "\0" in "".join(header):
        way_out = files.conversion_hint("UTF-16")
        raise DataError(f"{source}: its first line holds NUL bytes; {way_out}")
    require(source, columns, header)
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise DataError(f"{source}: several columns are called {twice[0]!r}; rename all but one")
    return [header.index(column) for column in columns]
