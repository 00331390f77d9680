"""Data sets of the Hugging Face hub, or a directory that one was saved or downloaded to, by row.

Loads no code from the hub.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from trainers.data.files import DataError, file_fingerprint, local_path
from trainers.data.readers import arrow_columns, iter_arrow_rows, require_columns
from trainers.data.rows.skips import Columns, Row
from trainers.data.rows.source_files import SAVED, is_saved
from trainers.data.splits import SPLIT_NAMES, SplitName
from trainers.untrusted.bounded_json import check_size

MAX_INDEX = 64 << 20  # bytes of a state.json
UNKNOWN_CLASS = -1  # what `datasets` writes where a split has no labels


def hub_fingerprint(source: str, subset: str | None, part: SplitName) -> str:
    """Identify a data set by its name, configuration, version and revision."""
    if is_saved(source):
        folder = local_path(source) or Path(source)
        names = sorted(path for path in folder.rglob("*") if path.suffix in (".arrow", ".json"))
        contents = [f"{each.relative_to(folder)} {file_fingerprint(str(each))}" for each in names]
        return f"saved:{hashlib.sha256(repr(contents).encode()).hexdigest()}/{part}"
    builder = _load_builder(source, subset)
    config = f"{builder.dataset_name}/{builder.config.name}/{builder.config.version}"
    return f"hub:{config}/{builder.hash}/{part}"


def read_hub_rows(
    source: str, subset: str | None, part: SplitName, columns: Columns
) -> tuple[Iterator[Row], tuple[str, ...]]:
    """Iterate over the rows of the split for `part`, or of the only split.

    Returns the names of the classes as well, where the label column holds indices that the data set
    names. Raises DataError where the data set, the split or a column cannot be loaded.
    """
    splits = _load_splits(source, subset)
    only = list(splits) if len(splits) == 1 else []
    chosen = _find_split(splits, part) or next(iter(only), None)
    if chosen is None:
        raise DataError(f"{source}: no split for {part}; it has {', '.join(splits)}")
    table = splits[chosen]
    found = arrow_columns(table.features.arrow_schema, columns)
    require_columns(source, columns, found)
    labels = [column for column, setting in columns.items() if setting == "data.label"]
    feature = table.features.get(labels[0]) if labels else None
    names = getattr(getattr(feature, "feature", feature), "names", ())
    wanted = list({found[column] for column in columns})
    batches = table.select_columns(wanted).with_format("arrow").iter(batch_size=1000)
    return enumerate(iter_arrow_rows(batches, columns), 1), tuple(names)


def own_splits(source: str, subset: str | None, label: str | None) -> set[SplitName]:
    """Return the splits that a data set has of its own, beside that to train on.

    label: the column without which a split is of no use, as those of benchmarks whose labels are
    secret. Raises DataError where the data set cannot be loaded.
    """
    splits = _load_splits(source, subset)
    if _find_split(splits, "train") is None or len(splits) == 1:
        return set()
    found: dict[SplitName, str | None] = {
        part: _find_split(splits, part) for part in ("validation", "test")
    }
    return {part for part, name in found.items() if name and _is_labelled(splits[name], label)}


def _find_split(splits: Collection[str], part: SplitName) -> str | None:
    return next((name for name in SPLIT_NAMES[part] if name in splits), None)


def _is_labelled(table: Any, label: str | None) -> bool:
    feature = table.features.get(label)
    if label is None or getattr(feature, "names", None) is None:
        return True
    batches = table.select_columns([label]).with_format("arrow").iter(batch_size=10_000)
    unknown = {UNKNOWN_CLASS, None}
    return any(set(batch.column(label).unique().to_pylist()) - unknown for batch in batches)


def _load_builder(source: str, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(source, subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable_error(source, error) from None


def _load_splits(source: str, subset: str | None) -> Any:
    if is_saved(source):
        return _load_saved(source)
    builder = _load_builder(source, subset)
    try:
        builder.download_and_prepare()
        return builder.as_dataset()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable_error(source, error) from None


def _load_saved(source: str) -> Any:
    """Load what `save_to_disk` wrote: its splits, or one. Raises DataError."""
    import datasets

    folder = local_path(source) or Path(source)
    for index in sorted(folder.rglob("*.json")):
        _check_names(index)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise DataError(
            f"{source}: cannot be loaded as a saved data set ({type(error).__name__}: {error}); "
            "save it anew with save_to_disk"
        ) from None
    return loaded if isinstance(loaded, dict) else {"train": loaded}


def _check_names(path: Path) -> None:
    """Raise DataError where an index of a saved data set names files outside of its folder."""
    if path.name not in SAVED:
        return
    way_out = "save the data set anew with save_to_disk"
    check_size(path, MAX_INDEX, way_out)
    try:
        index = json.loads(path.read_bytes())
        is_whole = path.name == "dataset_dict.json"
        named = index["splits"] if is_whole else [e["filename"] for e in index["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path}: cannot be read; {way_out}") from None
    for name in named:
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{path}: names {name!r}, which is not in its folder; {way_out}")


def _unavailable_error(source: str, error: Exception) -> DataError:
    return DataError(
        f"{source}: no such file, and as a data set of the hub it could not be loaded "
        f"({type(error).__name__}: {error}); reach the hub once to fill its cache, or name a file "
        "(data.source=FILE.csv) or the directory that the data set was downloaded to"
    )
