"""The rows of a recipe: cleaned, split and labelled, but not encoded yet."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from trainers.config.recipe import Recipe
from trainers.data import labels as labelling
from trainers.data import sources
from trainers.data.files import DataError
from trainers.data.labels import Label
from trainers.data.readers import SkipCounter, SkippedRows
from trainers.data.splits import SplitName, assign_splits, mask_unseen, text_digest

PARTS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SplitRows:
    """The cleaned rows of one split; row i is `origin` numbers[i], as in "data.csv line" 7."""

    origin: str
    texts: list[str]
    labels: list[Label]
    digests: list[bytes]
    numbers: list[int]

    def locate_row(self, row: int) -> str:
        """Name the place of a row, for error messages."""
        return f"{self.origin} {self.numbers[row]}"

    def filter_rows(self, keep: np.ndarray) -> "SplitRows":
        """Return the rows for which `keep` `[n]` is true."""
        return SplitRows(
            self.origin,
            list(compress(self.texts, keep)),
            list(compress(self.labels, keep)),
            list(compress(self.digests, keep)),
            list(compress(self.numbers, keep)),
        )


@dataclass(frozen=True)
class Corpus:
    """All usable rows of a recipe.

    names: of the classes. skipped: of all sources. held_out: rows left out because a held-out
    source has their text.
    """

    splits: dict[SplitName, SplitRows]
    targets: dict[SplitName, np.ndarray]
    names: tuple[str, ...]
    rows_read: int
    skipped: tuple[SkippedRows, ...]
    held_out: int


def gather_corpus(recipe: Recipe, clean: Callable[[str], str]) -> Corpus:
    """Read, clean, split and label all that `recipe` asks for. Raises DataError."""
    data = recipe.data
    held_out: dict[SplitName, float | str] = {"validation": data.validation, "test": data.test}
    shares = {part: share for part, share in held_out.items() if isinstance(share, float)}
    main, rows_read, skipped = _read_usable_rows(data.source, "train", recipe, clean)
    labelling.check_label_column(main.labels, recipe.task, data, data.source)
    drawn = assign_splits(main.digests, shares.get("validation", 0.0), shares.get("test", 0.0))
    splits = {part: main.filter_rows(drawn == number) for number, part in enumerate(PARTS)}
    for part, source in held_out.items():
        if isinstance(source, str):
            splits[part], more_read, more_skipped = _read_usable_rows(source, part, recipe, clean)
            rows_read, skipped = rows_read + more_read, skipped + more_skipped
    splits, num_dropped = _drop_leaked_rows(splits)
    _check_not_empty(splits, held_out)
    names = labelling.class_names(splits["train"].labels, recipe.task, data.labels)
    targets = {
        part: labelling.build_targets(split.labels, recipe.task, names, split.locate_row)
        for part, split in splits.items()
    }
    return Corpus(splits, targets, names, rows_read, skipped, num_dropped)


def corpus_identity(recipe: Recipe) -> list[Any]:
    """Return plain values that change whenever `gather_corpus` would return something else.

    The cleaning's own code is left out. Raises DataError where a source cannot be read.
    """
    data = recipe.data
    settings = data.model_dump(mode="json", exclude={"source", "validation", "test", "standardize"})
    parts = dict(zip(PARTS, (data.source, data.validation, data.test), strict=True))
    contents = {
        part: sources.source_fingerprint(source, data, part) if isinstance(source, str) else source
        for part, source in parts.items()
    }
    return [recipe.task, settings, contents]


def count_repeats(splits: dict[SplitName, SplitRows]) -> tuple[int, int]:
    """Count rows whose text stands in an earlier row, and texts that have several labels."""
    labels_of: dict[bytes, set[Label]] = {}
    num_rows = 0
    for split in splits.values():
        for key, label in zip(split.digests, split.labels, strict=True):
            labels_of.setdefault(key, set()).add(label)
            num_rows += 1
    return num_rows - len(labels_of), sum(len(labels) > 1 for labels in labels_of.values())


def _read_usable_rows(
    source: str, part: SplitName, recipe: Recipe, clean: Callable[[str], str]
) -> tuple[SplitRows, int, tuple[SkippedRows, ...]]:
    """Return the rows of `source` with a text and a label, the number read, and the others."""
    rows = sources.read_source(source, recipe.data, part, labelled=recipe.task != "masked-lm")
    skips = SkipCounter(rows.unit, rows.skipped)
    labels = labelling.parse_labels(rows, recipe.task, recipe.data, skips)
    split = SplitRows(f"{source} {rows.unit}", [], [], [], [])
    for text, label, number in zip(map(clean, rows.texts), labels, rows.numbers, strict=True):
        if not text and label is not None:
            skips.count_skipped("no text", number)
        elif label is not None:
            split.texts.append(text)
            split.labels.append(label)
            split.digests.append(text_digest(text))
            split.numbers.append(number)
    if not split.texts:
        why = "; ".join(f"{skip.reason}: {skip.rows} rows" for skip in skips.list_reasons())
        way_out = _way_out(recipe, rows.labels)
        raise DataError(f"{source}: no row can be used; {why}{way_out}")
    if part == "train":
        return split, rows.num_read, skips.list_reasons()
    named = tuple(replace(skip, reason=f"{part}: {skip.reason}") for skip in skips.list_reasons())
    return split, rows.num_read, named


def _way_out(recipe: Recipe, labels: list[Any]) -> str:
    """Return what to do where no row of a source has a text and a label."""
    if recipe.task == "masked-lm":
        return ""
    given = next((label for label in labels if not sources.is_missing(label)), None)
    column = f"data.label = {recipe.data.label!r}"
    if given is None:
        return f". Is {column} the right column?"
    if recipe.task == "regression":
        return f". {column} holds {str(given)[:60]!r}: for classes set task=classification"
    return f". Is {column}, as {str(given)[:60]!r}, what task={recipe.task} learns?"


def _drop_leaked_rows(splits: dict[SplitName, SplitRows]) -> tuple[dict[SplitName, SplitRows], int]:
    """Drop texts that a later split also has; return how many rows that were as well."""
    train, validation, test = (splits[part] for part in PARTS)
    kept = {
        "train": train.filter_rows(
            mask_unseen(train.digests, [*validation.digests, *test.digests])
        ),
        "validation": validation.filter_rows(mask_unseen(validation.digests, test.digests)),
        "test": test,
    }
    before, after = (sum(len(s.texts) for s in each.values()) for each in (splits, kept))
    return {part: kept[part] for part in PARTS}, before - after


def _check_not_empty(
    splits: dict[SplitName, SplitRows], held_out: dict[SplitName, float | str]
) -> None:
    """Raise DataError where a split that was asked for has no row."""
    if not splits["train"].texts:
        raise DataError(
            "no row is left to train on: the held-out rows took them all; lower data.validation "
            "and data.test, or give other sources"
        )
    for part, wanted in held_out.items():
        if not wanted or splits[part].texts:
            continue
        way_out = f"the source is too small for that: raise data.{part}, or set data.{part}=0"
        if isinstance(wanted, str):
            way_out = "every text of it is in data.test"
        raise DataError(f"data.{part} = {wanted!r} holds out no row; {way_out}")
