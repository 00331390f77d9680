"""A source in words becomes rows: texts and raw labels, and counts of what could not be used.

A source is a file (`tables.py`), a data set of a package (`packages.py`), `synthetic:house-prices`,
or a data set of the Hugging Face hub (`hub.py`). Knows no cleaning, no task and no tokenizer.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config.recipe import Data
from trainers.data import hub, packages, readers
from trainers.data.cleaning import LONGEST
from trainers.data.files import DataError
from trainers.data.readers import Columns, Row, Skip, Skips
from trainers.data.splits import Part, spread

SYNTHETIC = "synthetic:"
HOUSE_PRICES = "synthetic:house-prices"


@dataclass(frozen=True)
class Rows:
    """What a source holds, in its order; `texts`, `labels` and `numbers` go together.

    labels: as the source holds them: str, int, float, bool, list or None. numbers: where each row
    stands, counted in `unit`s from 1. label_names: of a label column of class indices, if the
    source names them. num_read: rows of the source, those in `skipped` included.
    """

    texts: list[str]
    labels: list[Any]
    numbers: list[int]
    unit: str
    num_read: int
    skipped: tuple[Skip, ...]
    label_names: tuple[str, ...] = ()


def read(source: str, data: Data, part: Part = "train", labelled: bool = True) -> Rows:
    """The rows of `source` that can be used, by the columns and the filter of `data`.

    Rows without text are left out and counted, like those that the filter or data.max_rows leaves
    out. max_rows binds the training source only and takes rows evenly: one, drawn with a fixed
    generator, from each of max_rows equal stretches. A text is cut at LONGEST characters. `part`
    chooses the split of a hub data set. Not `labelled`: no label column is asked for, and every
    label is None. Raises DataError.
    """
    columns = _columns(data, labelled)
    skips = Skips(readers.unit_of(str(_package(source)) if _is_package(source) else source))
    found = _Selection(data, list(columns), labelled)
    records, names = _records(source, data, part, columns, skips)
    for number, values in records:
        reason = found.take(number, values)
        if reason:
            skips.add(reason, number)
    found.check(source, skips)
    if part == "train" and data.max_rows is not None:
        found.thin(data.max_rows, skips)
    num_read = len(found.numbers) + sum(skip.rows for skip in skips.all())
    rows = (found.texts, found.labels, found.numbers)
    return Rows(*rows, skips.unit, num_read, skips.all(), names)


def fingerprint(source: str, data: Data, part: Part = "train") -> str:
    """What `source` holds now, as a short text that changes when the contents do.

    Raises DataError where the source is not to be had.
    """
    if _is_package(source):
        path = _package(source)
        return readers.fingerprint(str(path)) if path.is_file() else _folder_fingerprint(path)
    if source.startswith(SYNTHETIC):
        return f"{source}:v1"
    if _is_file(source):
        return readers.fingerprint(source)
    return hub.fingerprint(source, data.subset, part)


class _Selection:
    """Rows as they are chosen, one by one."""

    def __init__(self, data: Data, columns: list[str], labelled: bool) -> None:
        pieces = (data.text,) if isinstance(data.text, str) else data.text
        self._pieces = [columns.index(piece) for piece in pieces]
        self._label = columns.index(data.label) if labelled else None
        self._wanted = [(columns.index(name), value) for name, value in data.filter.items()]
        self._met: dict[str, Counter[str]] = {name: Counter() for name in data.filter}
        self.texts: list[str] = []
        self.labels: list[Any] = []
        self.numbers: list[int] = []

    def take(self, number: int, values: tuple[Any, ...]) -> str | None:
        """Keep a row, or say why not."""
        for (place, wanted), met in zip(self._wanted, self._met.values(), strict=True):
            value = "" if values[place] is None else str(values[place])
            if len(met) < 1000:
                met[value[:40]] += 1
            if value != wanted:
                return "data.filter"
        pieces = [values[place] for place in self._pieces if not is_missing(values[place])]
        if not pieces:
            return "no text"
        if any(isinstance(piece, (list, dict, bytes)) for piece in pieces):
            return "text is not a string"
        self.texts.append("\n".join(map(str, pieces))[:LONGEST])
        self.labels.append(None if self._label is None else values[self._label])
        self.numbers.append(number)
        return None

    def check(self, source: str, skips: Skips) -> None:
        """Raise a DataError where no row was kept."""
        if self.texts:
            return
        reasons = [f"{skip.reason}: {skip.rows} (first: {skip.first})" for skip in skips.all()]
        if [skip.reason for skip in skips.all()] == ["data.filter"]:
            reasons = [
                f"column {name!r} holds {', '.join(repr(v) for v, _ in met.most_common(10))}"
                for name, met in self._met.items()
                if met
            ]
            raise DataError(f"{source}: data.filter keeps no row; {'; '.join(reasons)}")
        why = "; ".join(reasons) if reasons else "it is empty, or has a header only"
        raise DataError(f"{source}: no row with a text; {why}")

    def thin(self, max_rows: int, skips: Skips) -> None:
        """Keep `max_rows` rows, evenly spread."""
        if len(self.texts) <= max_rows:
            return
        kept = np.zeros(len(self.texts), dtype=bool)
        kept[spread(len(kept), max_rows)] = True
        skips.add("data.max_rows", self.numbers[int(kept.argmin())], int((~kept).sum()))
        self.texts = list(compress(self.texts, kept))
        self.labels = list(compress(self.labels, kept))
        self.numbers = list(compress(self.numbers, kept))


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, or nothing but white space."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _columns(data: Data, labelled: bool) -> dict[str, str]:
    """Each wanted column, with the setting that asks for it."""
    texts = (data.text,) if isinstance(data.text, str) else data.text
    filters = {name: f"data.filter.{name}" for name in data.filter}
    label = {data.label: "data.label"} if labelled else {}
    return filters | dict.fromkeys(texts, "data.text") | label


def _records(
    source: str, data: Data, part: Part, columns: Columns, skips: Skips
) -> tuple[Iterator[Row], tuple[str, ...]]:
    """Every row of `source`, and the names of its class indices."""
    if _is_package(source):
        path = _package(source)
        if path.is_dir():
            return _picked(source, columns, _folder_rows(path)), ()
        return readers.read(str(path), columns, skips), ()
    if source.startswith(SYNTHETIC):
        return _picked(source, columns, _house_prices(source)), ()
    if _is_file(source):
        return readers.read(source, columns, skips), ()
    return hub.read(source, data.subset, part, columns)


def _picked(source: str, columns: Columns, records: Iterable[Mapping[str, str]]) -> Iterator[Row]:
    for number, record in enumerate(records, 1):
        readers.require(source, columns, record)
        yield number, tuple(record[column] for column in columns)


def _is_file(source: str) -> bool:
    """Whether `source` names a table; False leaves the hub. Raises DataError for other files."""
    if readers.format_of(source) is not None:
        return True
    if "://" in source or Path(source).expanduser().is_file():
        suffixes = f"{', '.join(readers.FORMATS)}; but for Parquet, .gz, .bz2 or .xz may follow"
        raise DataError(f"{source}: not a known kind of table; its name must end in {suffixes}")
    return False


def _is_package(source: str) -> bool:
    return source.startswith(packages.PREFIX)


def _package(source: str) -> Path:
    try:
        return packages.data_set(source)
    except packages.PackageError as error:
        raise DataError(str(error)) from None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.suffix == ".txt")


def _folder_rows(folder: Path) -> Iterator[dict[str, str]]:
    """One text a file, its label the folder. What is not UTF-8 is WINDOWS-1252."""
    for path in _files(folder):
        contents = path.read_bytes()
        try:
            text = contents.decode("utf-8")
        except UnicodeDecodeError:
            text = contents.decode("cp1252", errors="replace")
        yield {"text": text, "label": path.parent.name}


def _folder_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in _files(folder):
        contents = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(contents)} ".encode() + contents)
    return f"folder:sha256:{digest.hexdigest()}"


def _house_prices(source: str) -> Iterator[dict[str, str]]:
    """400 houses: price = 0.5 + 1.8 x area + noise of standard deviation 0.1.

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
