"""The files of a source: one, those that match a pattern, or those of a folder, and their splits.

A source of several files has the splits that their names say, as `train.csv` and `test/part-1.csv`;
without any such name all files are its rows. A folder may also hold a text a file, in a folder for
each class.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainers.data import files, readers
from trainers.data.cleaning import MAX_CHARACTERS
from trainers.data.files import DataError
from trainers.data.rows.delimited import Dialect
from trainers.data.rows.skips import Columns, Row, SkipCounter
from trainers.data.splits import SPLIT_NAMES, SplitName

SAVED = ("dataset_dict.json", "state.json")  # of what `datasets` saved to disk
MAX_SHOWN = 3
_AS_CSV = ". Save the sheet as CSV (UTF-8) in the program that made it"
_AS_PARQUET = ". Save the table as Parquet or CSV in the program that made it"
_UNPACK = ". Unpack it, and name a file or the folder"
# How what other programs write becomes a table.
_CONVERSIONS = {
    ".xls": _AS_CSV,
    ".ods": _AS_CSV,
    ".xlsm": _AS_CSV,
    ".txt": ". Give it a header, `text,label`, and rows that have both",
    **dict.fromkeys((".arrow", ".feather", ".orc", ".pkl", ".pickle", ".avro"), _AS_PARQUET),
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar", ".zst"), _UNPACK),
}


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source, by split; all in "train" where their names tell none.

    kind: "tables", or "texts" for a text a file. root: the folder that their names begin with.
    left_out: of the folder, those that are not read.
    """

    source: str
    kind: Literal["tables", "texts"]
    root: str
    splits: Mapping[SplitName, tuple[str, ...]]
    left_out: tuple[str, ...] = ()

    def files_of(self, part: SplitName) -> tuple[str, ...]:
        """Return the files of a split, or all where there is but one. Raises DataError."""
        found = self.splits["train"] if len(self.splits) == 1 else self.splits.get(part)
        if not found:
            raise DataError(f"{self.source}: no files of {part}; it has {', '.join(self.splits)}")
        return found

    def row_unit(self, part: SplitName) -> str:
        """Return what the numbers of the rows count."""
        found = self.files_of(part)
        return "row" if self.kind == "texts" or len(found) > 1 else readers.row_unit(found[0])

    def iter_rows(
        self, part: SplitName, columns: Columns, skips: SkipCounter, dialect: Dialect
    ) -> Iterator[Row]:
        """Iterate over the rows of a split; numbers go on from file to file. Raises DataError."""
        found = self.files_of(part)
        if self.kind == "texts":
            return self._iter_texts(found, columns, skips, dialect.encoding)
        if len(found) == 1:
            return readers.read_rows(found[0], columns, skips, dialect)
        return self._iter_tables(found, columns, skips, dialect)

    def fingerprint(self, part: SplitName) -> str:
        """Return a short text that changes with the contents of a split, or their names."""
        found = self.files_of(part)
        if self.kind == "tables" and len(found) == 1:
            return readers.table_fingerprint(found[0])
        digest = hashlib.sha256()
        for name in found:
            digest.update(f"{self._inner(name)} {files.file_fingerprint(name)}\n".encode())
        return f"{self.kind}:sha256:{digest.hexdigest()}"

    def note_unread(self, parts: set[SplitName]) -> str:
        """Return a note on the files that are in none of `parts`, "" where there are none."""
        unread = {part: names for part, names in self.splits.items() if part not in parts}
        names = [*itertools.chain.from_iterable(unread.values()), *self.left_out]
        shown = [self._inner(name) for name in names]
        if not shown:
            return ""
        more = f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
        return f"{self.source}: not read: {', '.join(shown[:MAX_SHOWN])}{more}"

    def _inner(self, name: str) -> str:
        return name.removeprefix(self.root).lstrip("/")

    def _iter_tables(
        self, found: tuple[str, ...], columns: Columns, skips: SkipCounter, dialect: Dialect
    ) -> Iterator[Row]:
        last = 0
        for name in found:
            unit, start = readers.row_unit(name), last
            skips.begin_file(f"{self._inner(name)} {unit}", start)
            inside = SkipCounter(unit)
            for number, values in readers.read_rows(name, columns, inside, dialect):
                last = start + number
                yield last, values
            skips.add_file(self._inner(name), inside)

    def _iter_texts(
        self, found: tuple[str, ...], columns: Columns, skips: SkipCounter, encoding: str
    ) -> Iterator[Row]:
        readers.require_columns(self.source, columns, ("text", "label"))
        for number, name in enumerate(found, 1):
            skips.begin_file(f"{self._inner(name)} row", number - 1)
            with files.open_text(name, newline="\n", encoding=encoding) as text:
                folders = _class_folders(self._inner(name))
                record = {"text": text.read(MAX_CHARACTERS), "label": folders[0]}
            yield number, tuple(record[column] for column in columns)


def find_source_files(source: str, has_subset: bool = False) -> SourceFiles | None:
    """Find the files of a source; None where `datasets` reads it, by name or from its directory.

    That reads what it saved, folders with a card (README.md with front matter) and folders of
    Parquet alone, and sources with a subset. Raises DataError where there is no file, or none that
    can be read.
    """
    if files.is_pattern(source):
        fixed = re.split(r"[*?\[]", source)[0]
        root = fixed[: fixed.rfind("/") + 1]
        found = _classify(source, root, files.match_pattern(source))
        if found is None:
            raise DataError(f"{source}: matches no table; the name of one ends in {readers.KNOWN}")
        return found
    if is_saved(source) or has_subset:
        return None
    path = files.local_path(source)
    inside = None
    # What has a suffix in a remote store is a file there, and only other names are asked about.
    if path.is_dir() if path else not Path(source).suffix or source.endswith("/"):
        inside = files.list_folder(source)
    if inside is not None:
        found = _classify(source, source.rstrip("/") + "/", inside)
        if path is None and found is None:
            raise DataError(f"{source}: no table lies in it; one ends in {readers.KNOWN}")
        return None if path is not None and _is_of_hub(path, found) else found
    if readers.table_format(source) is not None:
        return SourceFiles(source, "tables", "", {"train": (source,)})
    if "://" in source or (path and path.is_file()):
        hint = _CONVERSIONS.get(Path(source).suffix.lower(), "")
        hint = hint or _CONVERSIONS.get(next(iter(files.source_suffixes(source)[-2:-1]), ""), "")
        raise DataError(
            f"{source}: not a known kind of table; its name must end in {readers.KNOWN}{hint}"
        )
    return None


def is_saved(source: str) -> bool:
    """Return whether `source` is a directory that `datasets` saved a data set to."""
    path = files.local_path(source)
    return path is not None and any((path / name).is_file() for name in SAVED)


def _is_of_hub(path: Path, found: SourceFiles | None) -> bool:
    """Return whether a folder was downloaded from the hub, or is such as `datasets` reads best."""
    card = path / "README.md"
    if card.is_file():
        with card.open("rb") as stream:
            if stream.read(4).rstrip() == b"---":
                return True
    if found is None:
        return True
    names = [name for each in found.splits.values() for name in each]
    return {readers.table_format(name) for name in names} == {"parquet"}


def _classify(source: str, root: str, found: list[str]) -> SourceFiles | None:
    """Sort files into splits: tables, or else texts that lie in a folder; None for neither."""
    kind: Literal["tables", "texts"] = "tables"
    wanted = [name for name in found if readers.table_format(name) is not None]
    if not wanted:
        kind = "texts"
        wanted = [name for name in found if _is_text(name.removeprefix(root))]
    if not wanted:
        return None
    splits: dict[SplitName, list[str]] = {}
    for name in wanted:
        inner = name.removeprefix(root)
        part = _find_split(inner.split("/") if kind == "tables" else _split_folder(inner))
        if part is not None:
            splits.setdefault(part, []).append(name)
    if "train" not in splits or len(splits) < 2:
        return SourceFiles(source, kind, root, {"train": tuple(wanted)})
    read = {name for names in splits.values() for name in names}
    left_out = tuple(name for name in wanted if name not in read)
    return SourceFiles(source, kind, root, {k: tuple(v) for k, v in splits.items()}, left_out)


def _is_text(inner: str) -> bool:
    """Return whether a file is a text in the folder of its class."""
    return inner.lower().endswith(".txt") and bool(_class_folders(inner))


def _split_folder(inner: str) -> list[str]:
    """Return the outermost folder of a text, if it may be a split, as in train/pos/1.txt."""
    return inner.split("/")[:-1][:1]


def _class_folders(inner: str) -> list[str]:
    """Return the folders that a text lies in below that of its split."""
    folders = inner.split("/")[:-1]
    return folders[1:] if _find_split(folders[:1]) is not None else folders


def _find_split(parts: list[str]) -> SplitName | None:
    """Return the split that parts of a path tell: that of the first which names one."""
    for part in parts:
        words = set(re.findall("[a-z]+", part.lower()))
        named = [split for split, names in SPLIT_NAMES.items() if words & set(names)]
        if len(named) == 1:
            return named[0]
    return None
