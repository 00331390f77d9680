"""The rows of a recipe: cleaned, split and labelled, but not encoded yet.

A source is read once, row by row. Its cleaned texts lie in a temporary file, and of each row a few
numbers stay in memory; so sources may be larger than memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainers.config.data_section import DEFAULT_SHARE, DataConfig
from trainers.config.recipe import Recipe, Task
from trainers.data import labels as labelling
from trainers.data import sources
from trainers.data.files import DataError
from trainers.data.labels import Label
from trainers.data.rows.label_checks import check_label_column, check_training_labels
from trainers.data.rows.own_splits import resolve_held_out
from trainers.data.rows.skips import SkippedRows
from trainers.data.rows.source_rows import CodedLabels, OnRows, SourceCounts, read_usable_rows
from trainers.data.rows.source_rows import SplitRows as SplitRows
from trainers.data.rows.spilled_texts import TextSpill
from trainers.data.splits import SplitName, assign_splits, mask_unseen, stratify_splits

# Settings of the data that decide nothing about its rows, or are told apart elsewhere.
_NOT_OF_THE_CORPUS = {"source", "validation", "test", "standardize", "windows"}
PARTS: tuple[SplitName, ...] = ("train", "validation", "test")
SPLIT_RULES = 2  # of `splits.py`; bump to invalidate what was split by older ones

Splits = dict[SplitName, SplitRows]


@dataclass(frozen=True)
class Corpus:
    """All usable rows of a recipe.

    names: of the classes. skipped: of all sources. held_out: rows left out because a held-out
    source has their text. notes: for the data report, on the labels.
    """

    task: Task
    splits: Splits
    names: tuple[str, ...]
    rows_read: int
    skipped: tuple[SkippedRows, ...]
    held_out: int
    notes: tuple[str, ...] = ()

    def build_targets(self, part: SplitName, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Build the targets of `rows` of a split, as `labels.build_targets` does."""
        labels = _coded(self.splits[part]).take(rows)
        return labelling.build_targets(labels[:], self.task, self.names, lambda row: part)

    def count_labels(self, part: SplitName) -> dict[str, int]:
        """Count the rows of a split that have each class, in the order of `names`."""
        return labelling.count_labels(*_present_labels(self.splits[part]), self.names)


def gather_corpus(
    recipe: Recipe,
    clean: Callable[[str], str],
    directory: Path | None = None,
    on_rows: OnRows = lambda rows: None,
) -> Corpus:
    """Read, clean, split and label all that `recipe` asks for. Raises DataError.

    directory: of the temporary file of texts; None: the system's. on_rows: is called with the
    number of rows read so far.
    """
    given, labelled = recipe.data, recipe.task != "masked-lm"
    data, notes = resolve_held_out(given, labelled)
    notes += tuple(_note_texts(recipe))
    recipe = recipe.model_copy(update={"data": data})
    held_out: dict[SplitName, float | str] = {"validation": data.validation, "test": data.test}
    spill = TextSpill(directory)
    rows, main = read_usable_rows(data.source, "train", recipe, clean, spill, on_rows)
    present, counts = _present_labels(rows)
    check_label_column(present, counts, recipe.task, data, data.source)
    splits, found = _split_rows(recipe, rows), [main]
    del rows
    for part, source in held_out.items():
        if isinstance(source, str):
            report = _report_more(on_rows, sum(each.num_read for each in found))
            try:
                splits[part], more = read_usable_rows(source, part, recipe, clean, spill, report)
            except DataError as error:
                raise DataError(f"{error}{_way_out_of_own(part, given)}") from None
            found.append(more)
    splits, num_dropped = _drop_leaked_rows(_share_values(splits))
    _check_not_empty(splits, held_out)
    check_training_labels(_present_labels(splits["train"])[0], recipe.task)
    everywhere = [label for split in splits.values() for label in _present_labels(split)[0]]
    names = labelling.class_names(
        everywhere, recipe.task, data.class_names or _vector_places(found)
    )
    _check_names(splits, recipe.task, names)
    return Corpus(
        recipe.task,
        splits,
        names,
        sum(each.num_read for each in found),
        tuple(skip for each in found for skip in each.skipped),
        num_dropped,
        tuple(dict.fromkeys([*notes, *(note for each in found for note in each.notes)])),
    )


def _way_out_of_own(part: SplitName, given: DataConfig) -> str:
    """Return how to do without a split of the source's own that cannot be read."""
    if getattr(given, part) != "auto":
        return ""
    return (
        f". This is the {part} split that {given.source} has of its own; data.{part}="
        f"{DEFAULT_SHARE} holds out texts to train on instead"
    )


def _vector_places(found: list[SourceCounts]) -> tuple[str, ...] | None:
    """Return the classes of labels that are vectors, of which some may be of no row."""
    places = list(dict.fromkeys(each.places for each in found))
    if len(places) > 1:
        kinds = " and ".join(f"vectors of {len(p)} numbers" if p else "names" for p in places)
        raise DataError(
            f"the labels of the sources are {kinds}; name the classes in data.labels, or write the "
            "labels of all in one way"
        )
    return places[0] or None


def _note_texts(recipe: Recipe) -> list[str]:
    columns = recipe.data.text
    if isinstance(columns, str) or len(columns) < 2 or recipe.model.name == "linear":
        return []
    return [
        f"the columns {', '.join(columns)} are joined into one text, and nothing tells the model "
        "where one ends: this is no training on pairs"
    ]


def corpus_identity(recipe: Recipe) -> list[Any]:
    """Return plain values that change whenever `gather_corpus` would return something else.

    The cleaning's own code is left out. Raises DataError where a source cannot be read.
    """
    data, _ = resolve_held_out(recipe.data, recipe.task != "masked-lm")
    settings = data.model_dump(mode="json", exclude=_NOT_OF_THE_CORPUS)
    parts = dict(zip(PARTS, (data.source, data.validation, data.test), strict=True))
    contents = {
        part: sources.source_fingerprint(source, data, part) if isinstance(source, str) else source
        for part, source in parts.items()
    }
    return [recipe.task, settings, contents, SPLIT_RULES]


def count_repeats(splits: Splits) -> tuple[int, int]:
    """Count rows whose text stands in an earlier row, and texts that have several labels."""
    hashes = np.concatenate([split.hashes for split in splits.values()])
    labels = np.concatenate([_coded(split).codes for split in splits.values()])
    values = _coded(splits["train"]).values
    if isinstance(values, np.ndarray):  # of a regression: two rows may have the same number
        labels = values[labels]
    order = np.lexsort((labels, hashes))
    hashes, labels = hashes[order], labels[order]
    repeats = hashes[1:] == hashes[:-1]
    differs = repeats & (labels[1:] != labels[:-1])
    return int(repeats.sum()), len(np.unique(hashes[1:][differs]))


def _coded(split: SplitRows) -> CodedLabels:
    assert isinstance(split.labels, CodedLabels)
    return split.labels


def _present_labels(split: SplitRows) -> tuple[list[Label], np.ndarray]:
    """Return the distinct labels of a split and the rows of each; none of a regression."""
    labels = _coded(split)
    if isinstance(labels.values, np.ndarray):
        return [], np.empty(0, dtype=np.int64)
    counts = labels.counts
    present = np.flatnonzero(counts)
    return [labels.values[code] for code in present.tolist()], counts[present]


def _report_more(on_rows: OnRows, done: int) -> OnRows:
    return lambda rows: on_rows(done + rows)


def _split_rows(recipe: Recipe, rows: SplitRows) -> Splits:
    """Split the rows of the training source by their texts, and classes by their labels too."""
    shares = [
        share if isinstance(share, float) else 0.0
        for share in (recipe.data.validation, recipe.data.test)
    ]
    labels = _coded(rows)
    if recipe.task in ("regression", "masked-lm"):
        drawn = assign_splits(rows.hashes, *shares)
    else:
        named = [label for label in labels.values if isinstance(label, tuple)]
        drawn = stratify_splits(rows.hashes, named, labels.codes, *shares)
    return {part: rows.filter_rows(drawn == number) for number, part in enumerate(PARTS)}


def _share_values(splits: Splits) -> Splits:
    """Give the labels of all splits, which may come from several sources, the same values."""
    coded = {part: _coded(splits[part]) for part in PARTS}
    places: dict[Label, int] = {}
    values: list[Label] | np.ndarray
    if isinstance(coded["train"].values, np.ndarray):
        values = np.concatenate([np.asarray(each.values)[each.codes] for each in coded.values()])
        ends = np.cumsum([len(each) for each in coded.values()])
        codes = np.split(np.arange(len(values)), ends[:-1])
    else:
        tables = [
            np.array([places.setdefault(label, len(places)) for label in each.values], np.int32)
            for each in coded.values()
        ]
        values = list(places)
        codes = [table[each.codes] for table, each in zip(tables, coded.values(), strict=True)]
    return {
        part: replace(splits[part], labels=CodedLabels(values, each))
        for part, each in zip(PARTS, codes, strict=True)
    }


def _drop_leaked_rows(splits: Splits) -> tuple[Splits, int]:
    """Drop texts that a later split also has; return how many rows that were as well."""
    train, validation, test = (splits[part] for part in PARTS)
    later = np.concatenate([validation.hashes, test.hashes])
    kept = {
        "train": train.filter_rows(mask_unseen(train.hashes, later)),
        "validation": validation.filter_rows(mask_unseen(validation.hashes, test.hashes)),
        "test": test,
    }
    before, after = (sum(len(s.hashes) for s in each.values()) for each in (splits, kept))
    return {part: kept[part] for part in PARTS}, before - after


def _check_not_empty(splits: Splits, held_out: dict[SplitName, float | str]) -> None:
    """Raise DataError where a split that was asked for has no row."""
    if not len(splits["train"].hashes):
        raise DataError(
            "no row is left to train on: the held-out rows took them all; lower data.validation "
            "and data.test, or give other sources"
        )
    for part, wanted in held_out.items():
        if not wanted or len(splits[part].hashes):
            continue
        way_out = f"the source is too small for that: raise data.{part}, or set data.{part}=0"
        if isinstance(wanted, str):
            way_out = "every text of it is in data.test"
        raise DataError(f"data.{part} = {wanted!r} holds out no row; {way_out}")


def _check_names(splits: Splits, task: Task, names: tuple[str, ...]) -> None:
    """Raise DataError that names the first row with a label that data.labels does not have."""
    for split in splits.values() if names else ():
        labels = _coded(split)
        known = [set(label) <= set(names) for label in labels.values if isinstance(label, tuple)]
        unknown = np.flatnonzero(~np.array(known, dtype=bool)[labels.codes])
        if len(unknown):
            first = split.filter_rows(unknown[:1])
            labelling.build_targets(first.labels, task, names, first.locate_row)
