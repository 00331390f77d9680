"""Write rows to a file that is whole or not there: CSV, TSV, JSONL or Parquet, by its suffix.

with open_output("answers.csv", schema) as write_rows:
    write_rows([("A warm, funny film.", "positive", 0.98)])
"""

import bz2
import csv
import gzip
import json
import lzma
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from cluster.errors import BerthaError
from trainers.data import files, readers
from trainers.data.files import local_path
from trainers.storage.atomic import atomic_file
from trainers.storage.store import open_store

Rows = Sequence[Sequence[Any]]
WriteRows = Callable[[Rows], None]

WRITTEN = ("csv", "tsv", "jsonl", "parquet")  # row by row; one JSON value would be whole or not
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class OutputError(BerthaError):
    """A file that cannot be written; the message names it and the way out."""


def check_output(out: str, inputs: Sequence[str], overwrite: bool) -> None:
    """Raise OutputError where `out` cannot be written, before anything is computed for it."""
    if readers.table_format(out) not in WRITTEN:
        written = (suffix for suffix, kind in readers.FORMATS.items() if kind in WRITTEN)
        raise OutputError(
            f"--out {out}: its suffix says the format; end it in {', '.join(written)}"
        )
    if out.startswith(("http://", "https://")):
        raise OutputError(f"--out {out}: is not written over HTTP; name a path, or s3://")
    path = local_path(out)
    if any(out == each or (path is not None and local_path(each) == path) for each in inputs):
        raise OutputError(f"--out {out}: is read as well; name another file")
    if files.is_present(out) and not overwrite:
        raise OutputError(f"--out {out}: exists; add --overwrite, or name another file")
    if path is None:
        open_store(out.rpartition("/")[0]).check_access()
    elif path.is_dir():
        raise OutputError(f"--out {out}: is a directory; name a file in it")


@contextmanager
def open_output(out: str, schema: pyarrow.Schema) -> Iterator[WriteRows]:
    """Yield a function that writes rows, in the order of the schema; rename the file at the end.

    A block that fails leaves nothing, and an older file as it was. Raises OutputError.
    """
    path = local_path(out)
    if path is not None:
        try:
            with atomic_file(path) as temporary, _open_writer(temporary, out, schema) as write:
                yield write
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error}") from None
        return
    parent, _, name = out.rpartition("/")
    with tempfile.TemporaryDirectory(prefix="bertha-") as place:
        temporary = Path(place, name)
        with _open_writer(temporary, out, schema) as write:
            yield write
        open_store(parent).put_file(temporary, name)


@contextmanager
def open_stdout(schema: pyarrow.Schema) -> Iterator[WriteRows]:
    """Yield a function that prints rows as CSV. Raises OutputError where its reader has gone."""
    try:
        yield _csv_writer(sys.stdout, schema, ",")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit fails too
        raise OutputError("whoever read the output has ended; write to a file with --out") from None


@contextmanager
def _open_writer(path: Path, out: str, schema: pyarrow.Schema) -> Iterator[WriteRows]:
    """Yield a function that writes rows to `path` in the format of the name `out`."""
    kind = readers.table_format(out)
    if kind == "parquet":
        with pyarrow.parquet.ParquetWriter(path, schema) as parquet:
            yield lambda rows: parquet.write_batch(_to_batch(rows, schema))
        return
    opener = OPENERS.get(Path(out).suffix, open)
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, is written as JSON escapes it.
    with opener(path, "wt", encoding="utf-8", newline="", errors="backslashreplace") as stream:
        if kind == "jsonl":
            yield _jsonl_writer(stream, schema)
        else:
            yield _csv_writer(stream, schema, "\t" if kind == "tsv" else ",")


def _csv_writer(stream: TextIO, schema: pyarrow.Schema, delimiter: str) -> WriteRows:
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(schema.names)

    def write_rows(rows: Rows) -> None:
        writer.writerows([_to_text(value) for value in row] for row in rows)

    return write_rows


def _jsonl_writer(stream: TextIO, schema: pyarrow.Schema) -> WriteRows:
    def write_rows(rows: Rows) -> None:
        for row in rows:
            record = {name: _to_json(value) for name, value in zip(schema.names, row, strict=True)}
            stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    return write_rows


def _to_text(value: Any) -> Any:
    """Return what CSV writes of a value: nothing for None, JSON for what is nested."""
    return json.dumps(value, ensure_ascii=False, default=str) if _is_nested(value) else value


def _to_json(value: Any) -> Any:
    """Return a value that JSON has: it knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_nested(value: Any) -> bool:
    return isinstance(value, list | dict | tuple)


def _to_batch(rows: Rows, schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [_to_array(column, field) for column, field in zip(columns, schema, strict=True)]
    return pyarrow.record_batch(arrays, schema=schema)


def _to_array(values: Sequence[Any], field: pyarrow.Field) -> pyarrow.Array:
    if pyarrow.types.is_string(field.type):
        return pyarrow.array([_to_string(value) for value in values], type=field.type)
    return pyarrow.array(values, type=field.type)


def _to_string(value: Any) -> str | None:
    """Return a value as the text of a column that holds values of several kinds."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
