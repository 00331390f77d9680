"""Data sets of the Hugging Face hub, or a directory that one was downloaded to, row by row.

Loads no code from the hub.
"""

from collections.abc import Iterator
from typing import Any

from trainers.data.files import DataError
from trainers.data.readers import iter_arrow_rows, require_columns
from trainers.data.rows.skips import Columns, Row
from trainers.data.splits import SplitName

SPLITS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


def hub_fingerprint(source: str, subset: str | None, part: SplitName) -> str:
    """Identify a data set by its name, configuration, version and revision."""
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
    chosen = next((name for name in (*SPLITS[part], *only) if name in splits), None)
    if chosen is None:
        raise DataError(f"{source}: no split for {part}; it has {', '.join(splits)}")
    table = splits[chosen]
    require_columns(source, columns, table.column_names)
    labels = [column for column, setting in columns.items() if setting == "data.label"]
    feature = table.features[labels[0]] if labels else None
    names = getattr(getattr(feature, "feature", feature), "names", ())
    batches = table.select_columns(list(columns)).with_format("arrow").iter(batch_size=1000)
    return enumerate(iter_arrow_rows(batches, columns), 1), tuple(names)


def _load_builder(source: str, subset: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(source, subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable_error(source, error) from None


def _load_splits(source: str, subset: str | None) -> Any:
    builder = _load_builder(source, subset)
    try:
        builder.download_and_prepare()
        return builder.as_dataset()
    except (OSError, ValueError, RuntimeError) as error:
        raise _unavailable_error(source, error) from None


def _unavailable_error(source: str, error: Exception) -> DataError:
    return DataError(
        f"{source}: no such file, and as a data set of the hub it could not be loaded "
        f"({type(error).__name__}: {error}); reach the hub once to fill its cache, or name a file "
        "(data.source=FILE.csv) or the directory that the data set was downloaded to"
    )
