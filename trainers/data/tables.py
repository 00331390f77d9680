"""Whole tables: every column of one file or several, row by row in their order, in flat memory.

    table = open_table(["answers/"])
    for values in table.iter_rows():
        ...

`readers.py` reads the columns that a recipe wants; here all of them are kept, with their types.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow
import pyarrow.parquet

from trainers.data import files, readers
from trainers.data.files import DataError
from trainers.data.rows.delimited import DEFAULT_DIALECT, Dialect
from trainers.data.rows.skips import SkipCounter

INT64 = range(-(2**63), 2**63)
OBJECTS = ("jsonl", "json")  # formats whose rows may lack columns

Place = int | tuple[int, tuple[str, ...]]  # of a column, or of a key of the objects in it


@dataclass(frozen=True)
class Table:
    """Files with the same columns, read one after another.

    schema: names and types of the columns; what CSV and Excel hold is text. num_rows: that can be
    read. skipped: a sentence for each kind of row that cannot. dialect: of CSV and TSV.
    """

    sources: tuple[str, ...]
    schema: pyarrow.Schema
    num_rows: int
    skipped: tuple[str, ...] = ()
    dialect: Dialect = DEFAULT_DIALECT

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in the order of the first file."""
        return tuple(self.schema.names)

    def iter_rows(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over the values of each row, in the order of the columns."""
        for source in self.sources:
            yield from iter_file(source, self.columns, self.dialect)

    def find_columns(self, wanted: Sequence[str], setting: str) -> list[Place]:
        """Return the places of columns, which may be paths into objects, as review.body.

        Raises DataError for an absent one, naming the setting.
        """
        paths = {name: name.split(".") for name in wanted if name not in self.columns}
        inside = [name for name, path in paths.items() if path[1:] and path[0] in self.columns]
        present = (*self.columns, *inside)
        columns = dict.fromkeys(wanted, setting)
        readers.require_columns(self.sources[0], columns, present, self.dialect.prefix)
        return [
            (self.columns.index(paths[name][0]), tuple(paths[name][1:]))
            if name in paths
            else self.columns.index(name)
            for name in wanted
        ]


def cell_at(row: Sequence[Any], place: Place) -> Any:
    """Return what a row holds at a place, None for nothing."""
    if isinstance(place, int):
        return row[place]
    return readers.follow_path(row[place[0]], place[1])


def list_tables(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the files that are meant by files and directories, in order.

    Raises DataError for what is no table, and for a directory without one.
    """
    found: list[str] = []
    for source in sources:
        inside = files.list_folder(source)
        tables = [source] if inside is None else list(filter(readers.table_format, inside))
        if not tables or readers.table_format(tables[0]) is None:
            what = "not a known kind of table" if inside is None else "no table lies in it"
            raise DataError(f"{source}: {what}; the name of one ends in {readers.KNOWN}")
        found += tables
    return tuple(found)


def open_table(sources: Sequence[str], dialect: Dialect = DEFAULT_DIALECT) -> Table:
    """Open files and directories as one table, after reading them once to count the rows.

    Raises DataError where they cannot be read, or have different columns.
    """
    tables = [_scan_file(source, dialect) for source in list_tables(sources)]
    schema = tables[0].schema
    for other in tables[1:]:
        schema = _unite_schemas(tables[0], schema, other)
    return Table(
        tuple(each.sources[0] for each in tables),
        schema,
        sum(each.num_rows for each in tables),
        tuple(itertools.chain.from_iterable(each.skipped for each in tables)),
        dialect,
    )


def iter_file(
    source: str, columns: Sequence[str], dialect: Dialect = DEFAULT_DIALECT
) -> Iterator[tuple[Any, ...]]:
    """Iterate over the values of these columns in each row of a file that was scanned."""
    skips, kind = SkipCounter(readers.row_unit(source)), readers.file_format(source)
    if kind in OBJECTS:
        for _, record in readers.read_records(source, skips, dialect.encoding):
            yield tuple(record.get(name) for name in columns)
        return
    wanted: dict[str, str] = dict.fromkeys(columns, "the columns")
    for _, values in readers.read_rows(source, wanted, skips, dialect):
        if kind == "xlsx":
            values = tuple("" if value is None else str(value) for value in values)
        yield values


def _scan_file(source: str, dialect: Dialect) -> Table:
    kind = readers.file_format(source)
    if kind == "parquet":
        with files.open_binary(source) as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
        return Table((source,), schema.remove_metadata(), num_rows)
    skips = SkipCounter(readers.row_unit(source))
    if kind in OBJECTS:
        schema, num_rows = _scan_objects(source, skips, dialect.encoding)
    else:
        names = readers.read_header(source, dialect)
        if not names:
            raise DataError(f"{source}: it is empty; its first line must name the columns")
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        wanted: dict[str, str] = dict.fromkeys(names, "the columns")
        num_rows = sum(1 for _ in readers.read_rows(source, wanted, skips, dialect))
    skipped = tuple(
        f"{source}: {skip.rows} row{'s' * (skip.rows > 1)} left out: {skip.reason} "
        f"(first: {skip.first})"
        for skip in skips.list_reasons()
    )
    return Table((source,), schema, num_rows, skipped)


def _scan_objects(source: str, skips: SkipCounter, encoding: str) -> tuple[pyarrow.Schema, int]:
    """Return the columns of all rows together, each of the narrowest type, and count the rows."""
    kinds: dict[str, set[str]] = {}
    num_rows = 0
    for _, record in readers.read_records(source, skips, encoding):
        num_rows += 1
        for name, value in record.items():
            kinds.setdefault(name, set()).add(_json_kind(value))
    if not kinds:
        raise DataError(f"{source}: no row with a column; is there a JSON object a line?")
    return pyarrow.schema([(name, _arrow_type(each)) for name, each in kinds.items()]), num_rows


def _json_kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value not in INT64:
        return "large"
    return type(value).__name__


def _arrow_type(kinds: set[str]) -> pyarrow.DataType:
    """Return the type that holds JSON values of these kinds; text where there is no other."""
    kinds = kinds - {"NoneType"}
    if kinds == {"bool"}:
        return pyarrow.bool_()
    if kinds == {"int"}:
        return pyarrow.int64()
    return pyarrow.float64() if kinds and kinds <= {"int", "float"} else pyarrow.string()


def _unite_schemas(first: Table, schema: pyarrow.Schema, other: Table) -> pyarrow.Schema:
    """Return the schema of two files together; one of JSON may lack columns."""
    source = other.sources[0]
    different = sorted({*schema.names} ^ {*other.columns})
    if different and not all(
        readers.file_format(each) in OBJECTS for each in (first.sources[0], source)
    ):
        raise DataError(
            f"{source}: column {different[0]!r} is not in all files ({first.sources[0]} was read "
            "first); give files with the same columns"
        )
    types: dict[str, set[pyarrow.DataType]] = {}
    for field in [*schema, *other.schema]:
        types.setdefault(field.name, set()).add(field.type)
    return pyarrow.schema([(name, _unite_types(each)) for name, each in types.items()])


def _unite_types(types: set[pyarrow.DataType]) -> pyarrow.DataType:
    if len(types) == 1:
        return next(iter(types))
    return pyarrow.float64() if types <= {pyarrow.int64(), pyarrow.float64()} else pyarrow.string()
