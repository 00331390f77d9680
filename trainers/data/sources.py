"""Read a source: texts and raw labels of its rows, and counts of what cannot be used.

A source is a file, a pattern of names or a folder (`rows/source_files.py`), a data set of a package
(`packages.py`), `synthetic:house-prices`, or a data set of the Hugging Face hub (`hub.py`).
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from trainers.config.data_section import DataConfig
from trainers.data import hub, packages, readers
from trainers.data.cleaning import MAX_CHARACTERS, is_blank
from trainers.data.files import DataError, MissingFile
from trainers.data.rows.delimited import Dialect
from trainers.data.rows.skips import Columns, Row, SkipCounter, SkippedRows
from trainers.data.rows.source_files import find_source_files
from trainers.data.splits import SplitName, spread_indices

SYNTHETIC = "synthetic:"
HOUSE_PRICES = "synthetic:house-prices"
_SETTINGS: dict[SplitName, str] = {
    "train": "data.source", "validation": "data.validation", "test": "data.test",
}  # fmt: skip


@dataclass(frozen=True)
class RawRows:
    """The rows of a source in its order; `texts`, `labels` and `numbers` are parallel lists.

    labels: as the source holds them: str, int, float, bool, list or None. numbers: where each row
    stands, counted in `unit`s from 1. label_names: of a label column of class indices, if the
    source names them. num_read: rows of the source, those in `skipped` included.
    """

    texts: list[str]
    labels: list[Any]
    numbers: list[int]
    unit: str
    num_read: int
    skipped: tuple[SkippedRows, ...]
    label_names: tuple[str, ...] = ()


class RowStream:
    """The rows of a source that can be used, once and in its order: (number, text, raw label).

    number: where a row stands, counted in `unit`s from 1. skips: counts the others, as they are
    met. label_names: as in `RawRows`.
    """

    def __init__(self, source: str, data: DataConfig, part: SplitName, labelled: bool) -> None:
        columns = _wanted_columns(data, labelled)
        self.skips = SkipCounter(_row_unit(source, data, part))
        self.unit = self.skips.unit
        self._source, self._selection = source, _RowSelection(data, list(columns), labelled)
        self._records, self.label_names = _iter_records(source, data, part, columns, self.skips)

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        """Iterate over the rows. Raises DataError where there is none."""
        is_empty = True
        for number, values in self._records:
            text, label, reason = self._selection.read_row(values)
            if text is None:
                self.skips.count_skipped(reason, number)
            else:
                is_empty = False
                yield number, text, label
        if is_empty:
            self._selection.raise_empty(self._source, self.skips)


def open_source(
    source: str, data: DataConfig, part: SplitName = "train", labelled: bool = True
) -> RowStream:
    """Open `source` to read the rows that can be used, by the columns and the filter of `data`.

    Rows without text are left out and counted, like those that the filter leaves out. A text is cut
    at MAX_CHARACTERS. `part` chooses the split of a hub data set. Not `labelled`: no label column
    is read, and every label is None. Raises DataError.
    """
    return RowStream(source, data, part, labelled)


def read_source(
    source: str, data: DataConfig, part: SplitName = "train", labelled: bool = True
) -> RawRows:
    """Read all rows of `open_source` into memory.

    data.max_rows limits the training source only and takes rows evenly: one, drawn with a fixed
    generator, from each of max_rows equal stretches. Raises DataError.
    """
    stream = open_source(source, data, part, labelled)
    rows, skips = list(stream), stream.skips
    if part == "train":
        kept = thin_rows(np.array([number for number, _, _ in rows]), data.max_rows, skips)
        rows = list(compress(rows, kept))
    numbers, texts, labels = (list(each) for each in zip(*rows, strict=True))
    num_read = len(rows) + sum(skip.rows for skip in skips.list_reasons())
    return RawRows(
        texts, labels, numbers, stream.unit, num_read, skips.list_reasons(), stream.label_names
    )


def thin_rows(numbers: np.ndarray, max_rows: int | None, skips: SkipCounter) -> np.ndarray:
    """Return which rows, whose numbers are `[n]`, are the `max_rows` evenly spread, `[n]` bool."""
    kept = np.ones(len(numbers), dtype=bool)
    if max_rows is None or len(numbers) <= max_rows:
        return kept
    kept[:] = False
    kept[spread_indices(len(kept), max_rows)] = True
    skips.count_skipped("data.max_rows", int(numbers[kept.argmin()]), int((~kept).sum()))
    return kept


def source_fingerprint(source: str, data: DataConfig, part: SplitName = "train") -> str:
    """Return a short text that changes when the contents of `source` do.

    Raises DataError where the source cannot be read.
    """
    if _is_package(source):
        path = _package_path(source)
        return readers.table_fingerprint(str(path)) if path.is_file() else _folder_fingerprint(path)
    if source.startswith(SYNTHETIC):
        return f"{source}:v1"
    try:
        found = find_source_files(source, data.subset is not None)
        if found is not None:
            return found.fingerprint(part)
    except MissingFile as error:
        raise DataError(f"{error}; set {_SETTINGS[part]}") from None
    return hub.hub_fingerprint(source, data.subset, part)


class _RowSelection:
    """Reads rows of a source one by one, by the columns and the filter of `data`."""

    def __init__(self, data: DataConfig, columns: list[str], labelled: bool) -> None:
        pieces = (data.text,) if isinstance(data.text, str) else data.text
        self._pieces = [columns.index(piece) for piece in pieces]
        self._labels = [columns.index(name) for name in data.label_columns] if labelled else []
        self._wanted = [(columns.index(name), value) for name, value in data.filter.items()]
        self._values: dict[str, Counter[str]] = {name: Counter() for name in data.filter}

    def read_row(self, values: tuple[Any, ...]) -> tuple[str | None, Any, str]:
        """Return the text and the label of a row, or None and the reason why it is left out."""
        for (column, wanted), counts in zip(self._wanted, self._values.values(), strict=True):
            value = "" if values[column] is None else str(values[column])
            if len(counts) < 1000:
                counts[value[:40]] += 1
            if value != wanted and not _is_same_truth(value, wanted):
                return None, None, "data.filter"
        text, reason = join_text([values[column] for column in self._pieces])
        cells = tuple(values[column] for column in self._labels)
        return text, cells if len(cells) > 1 else next(iter(cells), None), reason

    def raise_empty(self, source: str, skips: SkipCounter) -> NoReturn:
        """Raise the DataError of a source without a row that can be used."""
        reasons = [
            f"{skip.reason}: {skip.rows} (first: {skip.first})" for skip in skips.list_reasons()
        ]
        if [skip.reason for skip in skips.list_reasons()] == ["data.filter"]:
            reasons = [
                f"column {name!r} holds {', '.join(repr(v) for v, _ in counts.most_common(10))}"
                for name, counts in self._values.items()
                if counts
            ]
            raise DataError(f"{source}: data.filter keeps no row; {'; '.join(reasons)}")
        why = "; ".join(reasons) if reasons else "it is empty, or has a header only"
        raise DataError(f"{source}: no row with a text; {why}")


def join_text(cells: Sequence[Any]) -> tuple[str | None, str]:
    """Join the text columns of a row by line breaks; else None, and the reason why not."""
    pieces = [cell for cell in cells if not is_missing(cell)]
    if not pieces:
        return None, "no text"
    if any(isinstance(piece, (list, dict, bytes)) for piece in pieces):
        return None, "text is not a string"
    return "\n".join(map(str, pieces))[:MAX_CHARACTERS], ""


def _is_same_truth(value: str, wanted: str) -> bool:
    """Return whether two texts are the same of true and false, which are written in any case."""
    return wanted.lower() in ("true", "false") and value.lower() == wanted.lower()


def is_missing(value: object) -> bool:
    """Return whether a cell is None, NaN, or a text in which nobody sees anything."""
    return value is None or value != value or (isinstance(value, str) and is_blank(value))


def _wanted_columns(data: DataConfig, labelled: bool) -> dict[str, str]:
    """Return each wanted column, with the setting that asks for it."""
    texts = (data.text,) if isinstance(data.text, str) else data.text
    filters = {name: f"data.filter.{name}" for name in data.filter}
    label = dict.fromkeys(data.label_columns, "data.label") if labelled else {}
    slices = dict.fromkeys(data.slices, "data.slices")  # of which only the names are checked here
    return slices | filters | dict.fromkeys(texts, "data.text") | label


def _iter_records(
    source: str, data: DataConfig, part: SplitName, columns: Columns, skips: SkipCounter
) -> tuple[Iterator[Row], tuple[str, ...]]:
    """Iterate over all rows of `source`; return the names of its class indices as well."""
    if _is_package(source):
        path = _package_path(source)
        if path.is_dir():
            return _pick_columns(source, columns, _read_folder(path)), ()
        return readers.read_rows(str(path), columns, skips), ()
    if source.startswith(SYNTHETIC):
        return _pick_columns(source, columns, _generate_house_prices(source)), ()
    found = find_source_files(source, data.subset is not None)
    if found is not None:
        return found.iter_rows(part, columns, skips, _dialect(data)), ()
    return hub.read_hub_rows(source, data.subset, part, columns)


def read_slices(
    source: str, data: DataConfig, part: SplitName, numbers: Iterable[int]
) -> dict[int, tuple[str, ...]]:
    """Read the columns of data.slices: of the rows with these numbers the texts of their cells.

    What is missing is "". Raises DataError.
    """
    wanted = set(numbers)
    columns = dict.fromkeys(data.slices, "data.slices")
    skips = SkipCounter(_row_unit(source, data, part))
    records, _ = _iter_records(source, data, part, columns, skips)
    return {
        number: tuple("" if is_missing(cell) else str(cell).strip() for cell in cells)
        for number, cells in records
        if number in wanted
    }


def _dialect(data: DataConfig) -> Dialect:
    return Dialect(data.delimiter, data.quoting, data.encoding, data.header)


def _pick_columns(
    source: str, columns: Columns, records: Iterable[Mapping[str, str]]
) -> Iterator[Row]:
    for number, record in enumerate(records, 1):
        readers.require_columns(source, columns, record)
        yield number, tuple(record[column] for column in columns)


def _row_unit(source: str, data: DataConfig, part: SplitName) -> str:
    if _is_package(source):
        return readers.row_unit(str(_package_path(source)))
    if source.startswith(SYNTHETIC):
        return "row"
    found = find_source_files(source, data.subset is not None)
    return "row" if found is None else found.row_unit(part)


def _is_package(source: str) -> bool:
    return source.startswith(packages.PREFIX)


def _package_path(source: str) -> Path:
    try:
        return packages.resolve_data_set(source)
    except packages.PackageError as error:
        raise DataError(str(error)) from None


def _list_texts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix == ".txt")


def _read_folder(folder: Path) -> Iterator[dict[str, str]]:
    """Read one text a file, labelled by its folder. What is not UTF-8 is WINDOWS-1252."""
    for path in _list_texts(folder):
        contents = path.read_bytes()
        try:
            text = contents.decode("utf-8")
        except UnicodeDecodeError:
            text = contents.decode("cp1252", errors="replace")
        yield {"text": text, "label": path.parent.name}


def _folder_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _list_texts(folder):
        contents = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(contents)} ".encode() + contents)
    return f"folder:sha256:{digest.hexdigest()}"


def _generate_house_prices(source: str) -> Iterator[dict[str, str]]:
    """Generate 400 houses: price = 0.5 + 1.8 x area + noise of standard deviation 0.1.

    area in hundreds of square metres, price in hundreds of thousands of dollars, as texts with six
    decimals.
    """
    if source != HOUSE_PRICES:
        raise DataError(f"{source!r} is no synthetic data set; there is {HOUSE_PRICES}")
    draw = np.random.default_rng(0)
    areas = draw.uniform(0.5, 2.5, 400)
    prices = 0.5 + 1.8 * areas + draw.normal(0, 0.1, 400)
    for area, price in zip(areas, prices, strict=True):
        yield {"area": f"{area:.6f}", "price": f"{price:.6f}"}
