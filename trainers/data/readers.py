"""Tables in files: CSV, TSV, JSON, JSONL, Parquet and Excel, row by row.

What is wrong with a whole file is a DataError; a row that is wrong is counted and left out.
"""

import difflib
import json
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow.parquet

from trainers.data import files
from trainers.data.files import UTF8, DataError
from trainers.data.rows import delimited, workbook
from trainers.data.rows.delimited import DEFAULT_DIALECT, Dialect
from trainers.data.rows.skips import Columns, Row, SkipCounter

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".zip": "zip",
}
KNOWN = f"{', '.join(FORMATS)}; .gz, .bz2 or .xz may follow what is text"
MAX_JSON_CHARACTERS = 200_000_000  # of one JSON value, which is in memory as a whole
MAX_JSON_CONTAINERS = 10_000_000  # objects and lists in it; each takes some 60 bytes
PACKED = (".gz", ".bz2", ".xz")


def table_format(source: str) -> str | None:
    """Return csv, tsv, jsonl, json, parquet, xlsx or zip, by suffix; None for anything else."""
    *_, before, last = ["", "", *files.source_suffixes(source)]
    if last not in PACKED:
        return FORMATS.get(last)
    return FORMATS[before] if before in files.ZIPPED else None


def file_format(source: str) -> str | None:
    """Return the format of the table in a file: of a .zip, which is opened, that of what it holds.

    Raises DataError for a .zip that cannot be read.
    """
    kind = table_format(source)
    return table_format(files.zipped_name(source)) if kind == "zip" else kind


def row_unit(source: str) -> str:
    """Return what the numbers of the rows of `source` count."""
    return "line" if file_format(source) in ("csv", "tsv", "jsonl") else "row"


def read_rows(
    source: str, columns: Columns, skips: SkipCounter, dialect: Dialect = DEFAULT_DIALECT
) -> Iterator[Row]:
    """Iterate over `columns` of a file; an absent value is None, in CSV and TSV the empty text.

    What `dialect` says of delimiters and quotes is of CSV and TSV.

    A column of JSON may be a path into nested objects, as review.body. Raises DataError for a file
    that is absent or unreadable, in another encoding, or without the columns.
    """
    kind = file_format(source)
    require = partial(require_columns, prefix=dialect.prefix)
    if kind in ("jsonl", "json"):
        return _read_objects(source, columns, skips, dialect.encoding)
    if kind == "parquet":
        return _read_parquet(source, columns)
    if kind == "xlsx":
        return workbook.read_workbook(source, columns, dialect.header, require)
    return delimited.read_delimited(source, columns, skips, dialect, require)


def read_header(source: str, dialect: Dialect = DEFAULT_DIALECT) -> tuple[str, ...]:
    """Return the names of the columns of CSV, TSV or Excel, in order; () of an empty file.

    Raises DataError as `read_rows` does.
    """
    if file_format(source) == "xlsx":
        return workbook.read_workbook_header(source, dialect.header)
    return delimited.read_header(source, dialect)


def table_fingerprint(source: str) -> str:
    """Identify the contents of a table."""
    return f"{table_format(source)}:{files.file_fingerprint(source)}"


def require_columns(
    source: str, columns: Columns, present: Collection[str], prefix: str = "data."
) -> None:
    """Raise DataError that names the first of `columns` not among those present.

    prefix: as of `Dialect`.
    """
    names = sorted(present)
    for column, setting in columns.items():
        if column in present:
            continue
        marks = [mark for mark in ";\t|," if mark in names[0]] if len(names) == 1 else []
        if marks:
            raise DataError(
                f"{source}: its first line is {names[0][:80]!r}, so its columns are separated by "
                f"{marks[0]!r}; set {prefix}delimiter={marks[0]!r}"
            )
        close = difflib.get_close_matches(column, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        if not close and any(map(_is_no_name, names)):
            hint = (
                f"is its first line a row? Then set {prefix}header=false, and name columns by "
                f"their number from 1, as {prefix}text=1; else "
            )
        raise DataError(
            f"{source}: no column {column!r}; it has {', '.join(map(repr, names))}; "
            f"{hint}set {setting}"
        )


def _is_no_name(name: str) -> bool:
    """Return whether a name of a column is rather a text or a number."""
    return len(name.split()) > 4 or name.replace(".", "", 1).isdecimal()


def iter_arrow_rows(batches: Iterable[Any], columns: Columns) -> Iterator[tuple[Any, ...]]:
    """Iterate over rows of Arrow tables or batches, values in the order of `columns`.

    A column may be a path into structs, as review.body.
    """
    for batch in batches:
        yield from zip(*(_list_values(batch, name) for name in columns), strict=True)


def arrow_columns(schema: Any, columns: Iterable[str]) -> dict[str, str]:
    """Return the column of `schema` (pyarrow.Schema) that holds each of `columns`, if one does."""
    found = {name: name for name in schema.names}
    for column in columns:
        first, *path = column.split(".")
        kind: Any = schema.field(first).type if path and first in found else None
        for key in path:
            is_there = pyarrow.types.is_struct(kind) and kind.get_field_index(key) >= 0
            kind = kind.field(key).type if is_there else None
        if kind is not None:
            found.setdefault(column, first)
    return found


def _list_values(batch: Any, column: str) -> list[Any]:
    if column in batch.schema.names:
        values: list[Any] = batch.column(column).to_pylist()
        return values
    first, *path = column.split(".")
    return [follow_path(value, path) for value in batch.column(first).to_pylist()]


def follow_path(value: Any, path: Iterable[str]) -> Any:
    """Return what lies at `path` in nested objects, None where there is nothing."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def read_records(
    source: str, skips: SkipCounter, encoding: str = UTF8
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over the objects of a JSONL file, or of a JSON array, each with its number.

    Raises DataError.
    """
    if file_format(source) == "json":
        items: Iterable[tuple[int, Any]] = enumerate(_load_array(source, encoding), 1)
    else:
        items = _load_lines(source, skips, encoding)
    for number, record in items:
        if isinstance(record, dict):
            yield number, record
        else:
            skips.count_skipped("not a JSON object", number)


def _load_lines(source: str, skips: SkipCounter, encoding: str) -> Iterator[tuple[int, Any]]:
    with files.open_text(source, newline="\n", encoding=encoding) as text:
        for number, line in enumerate(files.iter_lines(source, text), 1):
            if line.isspace():
                continue
            try:
                yield number, _parse_json(source, line)
            except (ValueError, RecursionError):
                skips.count_skipped("not JSON", number)


def _load_array(source: str, encoding: str) -> list[Any]:
    """Load the rows of a JSON file: an array of objects, or an object of equally long columns."""
    with files.open_text(source, newline="\n", encoding=encoding) as text:
        contents = text.read(MAX_JSON_CHARACTERS + 1)
    if len(contents) > MAX_JSON_CHARACTERS:
        raise DataError(
            f"{source}: one JSON value of over {MAX_JSON_CHARACTERS:,} characters; write one "
            "object a line, as .jsonl"
        )
    try:
        value = _parse_json(source, contents)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: not JSON: {error}; if it holds one object a line, call it .jsonl"
        ) from None
    if isinstance(value, list):
        return value
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(each, list) and len(each) == len(columns[0]) for each in columns):
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    raise DataError(
        f"{source}: holds {str(value)[:60]!r}; rows are an array of objects, or an object of "
        "columns of one length"
    )


def _parse_json(source: str, contents: str) -> Any:
    if len(contents) > MAX_JSON_CONTAINERS:
        containers = contents.count("[") + contents.count("{")
        if containers > MAX_JSON_CONTAINERS:
            raise DataError(
                f"{source}: one JSON value of {containers:,} objects and lists, and at most "
                f"{MAX_JSON_CONTAINERS:,} are read; write one object a line, as .jsonl"
            )
    return json.loads(contents)


def _read_objects(
    source: str, columns: Columns, skips: SkipCounter, encoding: str
) -> Iterator[Row]:
    paths = {column: column.split(".") for column in columns if "." in column}
    seen: set[str] = set()
    for number, record in read_records(source, skips, encoding):
        for column, path in paths.items():
            if column not in record:
                _follow_path(record, column, path)
        if not columns.keys() <= seen:
            seen.update(record)
            inner = ((key, value) for key, value in record.items() if isinstance(value, dict))
            seen.update(f"{key}.{name}" for key, value in inner for name in value)
        yield number, tuple(record.get(column) for column in columns)
    if seen:
        require_columns(source, columns, seen)


def _follow_path(record: dict[str, Any], column: str, path: list[str]) -> None:
    """Put what lies at `path` in nested objects into `record`, if there is something."""
    value: Any = record
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return
        value = value[key]
    record[column] = value


def _read_parquet(source: str, columns: Columns) -> Iterator[Row]:
    with files.open_binary(source) as stream:
        table = pyarrow.parquet.ParquetFile(stream)
        found = arrow_columns(table.schema_arrow, columns)
        require_columns(source, columns, found)
        wanted = list({found[column] for column in columns})
        batches = table.iter_batches(batch_size=1024, columns=wanted)
        try:
            yield from enumerate(iter_arrow_rows(batches, columns), 1)
        except UnicodeDecodeError as error:
            raise DataError(f"{source}: holds text that is not UTF-8: {error}") from None
