"""Excel workbooks (.xlsx), row by row: the first sheet that has the wanted columns."""

import itertools
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trainers.data import files
from trainers.data.files import DataError
from trainers.data.rows.skips import Columns, Require, Row
from trainers.untrusted.bounded_json import format_bytes

MAX_UNPACKED = 200_000_000  # bytes; its shared texts are in memory as a whole
MAX_ROWS = 1_048_576  # of a sheet, as Excel has them
AS_CSV = "save the sheet as CSV (UTF-8), and name that"
# What openpyxl and the XML parsers raise for a file that is not what it should be.
_BROKEN = (
    *(KeyError, ValueError, TypeError, IndexError, AttributeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError),
)

Cells = Sequence[Any]


def read_workbook(source: str, columns: Columns, header: bool, require: Require) -> Iterator[Row]:
    """Iterate over `columns` of a sheet, with its row numbers; an empty cell is None.

    header: whether the first row that is not empty names the columns, which are else called by
    number. A row of empty cells is none. Raises DataError, as `require` does for absent columns.
    """
    with _open_workbook(source) as workbook:
        chosen = None
        for sheet in workbook.worksheets:
            rows = _iter_rows(source, sheet)
            first = next(rows, None)
            if first is None:
                continue
            names = _name_columns(first[1], header)
            if chosen is None or columns.keys() <= set(names):
                chosen = names, rows if header else itertools.chain([first], rows)
            if columns.keys() <= set(names):
                break
        if chosen is None:
            return
        names, rows = chosen
        require(source, columns, [name for name in names if name])
        twice = [column for column in columns if names.count(column) > 1]
        if twice:
            raise DataError(f"{source}: several columns are called {twice[0]!r}; rename all but 1")
        places = [names.index(column) for column in columns]
        for number, cells in rows:
            yield number, tuple(cells[at] if at < len(cells) else None for at in places)


def read_workbook_header(source: str, header: bool) -> tuple[str, ...]:
    """Return the names of the columns of the first sheet that is not empty."""
    with _open_workbook(source) as workbook:
        for sheet in workbook.worksheets:
            for _, cells in _iter_rows(source, sheet):
                return tuple(filter(None, _name_columns(cells, header)))
    return ()


@contextmanager
def _open_workbook(source: str) -> Iterator[Any]:
    try:
        import defusedxml  # noqa: F401  (openpyxl uses it where it is there)
        import openpyxl
    except ImportError:
        raise DataError(
            f'{source}: .xlsx is read by openpyxl; pip install "bertha-ray[excel]", or {AS_CSV}'
        ) from None
    with files.open_binary(source) as stream:
        try:
            _check_sizes(source, stream)
            with warnings.catch_warnings():  # of styles and extensions, which are not read
                warnings.simplefilter("ignore")
                workbook = openpyxl.load_workbook(
                    stream, read_only=True, data_only=True, keep_links=False
                )
                try:
                    yield workbook
                finally:
                    workbook.close()
        except DataError:
            raise
        except _BROKEN as error:
            raise DataError(f"{source}: cannot be read as .xlsx: {error}; {AS_CSV}") from None


def _check_sizes(source: str, stream: Any) -> None:
    """Raise DataError for a workbook that would unpack to too many bytes."""
    with zipfile.ZipFile(stream) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_UNPACKED:
        raise DataError(
            f"{source}: unpacks to {format_bytes(size)}, and at most {format_bytes(MAX_UNPACKED)} "
            f"are read; {AS_CSV}"
        )


def _iter_rows(source: str, sheet: Any) -> Iterator[tuple[int, Cells]]:
    """Iterate over the rows of a sheet that are not empty, with their numbers."""
    sheet.reset_dimensions()  # some programs write wrong ones
    rows: Iterable[Cells] = sheet.iter_rows(values_only=True)
    for number, cells in enumerate(rows, 1):
        if number > MAX_ROWS:
            raise DataError(f"{source}: a sheet of over {MAX_ROWS:,} rows; {AS_CSV}")
        if any(cell not in (None, "") for cell in cells):
            yield number, cells


def _name_columns(cells: Cells, header: bool) -> list[str]:
    """Return the names of the columns, "" for one without."""
    if not header:
        return [str(place) for place in range(1, len(cells) + 1)]
    return ["" if cell is None else str(cell) for cell in cells]
