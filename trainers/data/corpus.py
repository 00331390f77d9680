"""The rows of a recipe, cleaned, on their sides of the split, with targets; not yet encoded.

Knows how sources, splits and labels come together; no tokenizer, no cache.
"""

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
from trainers.data.readers import Skip, Skips
from trainers.data.splits import Part, assign, digest, unseen

PARTS: tuple[Part, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Side:
    """Cleaned rows on one side of the split. Row i stands at `origin` numbers[i], as in
    "data.csv line" 7.
    """

    origin: str
    texts: list[str]
    labels: list[Label]
    digests: list[bytes]
    numbers: list[int]

    def place(self, row: int) -> str:
        """Where a row stands, for a person."""
        return f"{self.origin} {self.numbers[row]}"

    def where(self, keep: np.ndarray) -> "Side":
        """The rows for which `keep` `[n]` is true."""
        return Side(
            self.origin,
            list(compress(self.texts, keep)),
            list(compress(self.labels, keep)),
            list(compress(self.digests, keep)),
            list(compress(self.numbers, keep)),
        )


@dataclass(frozen=True)
class Corpus:
    """Every usable row. sides and targets are by split, names are the classes, skipped is of all
    sources; held_out: rows left out because a held-out source has their text.
    """

    sides: dict[Part, Side]
    targets: dict[Part, np.ndarray]
    names: tuple[str, ...]
    rows_read: int
    skipped: tuple[Skip, ...]
    held_out: int


def gather(recipe: Recipe, clean: Callable[[str], str]) -> Corpus:
    """Read, clean, split and label all that `recipe` asks for. Raises DataError."""
    data = recipe.data
    held_out: dict[Part, float | str] = {"validation": data.validation, "test": data.test}
    shares = {part: share for part, share in held_out.items() if isinstance(share, float)}
    main, rows_read, skipped = _usable(data.source, "train", recipe, clean)
    drawn = assign(main.digests, shares.get("validation", 0.0), shares.get("test", 0.0))
    sides = {part: main.where(drawn == number) for number, part in enumerate(PARTS)}
    for part, source in held_out.items():
        if isinstance(source, str):
            sides[part], more_read, more_skipped = _usable(source, part, recipe, clean)
            rows_read, skipped = rows_read + more_read, skipped + more_skipped
    sides, num_dropped = _apart(sides)
    _check(sides, held_out)
    names = labelling.vocabulary(sides["train"].labels, recipe.task, data.labels)
    targets = {
        part: labelling.targets(side.labels, recipe.task, names, side.place)
        for part, side in sides.items()
    }
    return Corpus(sides, targets, names, rows_read, skipped, num_dropped)


def identity(recipe: Recipe) -> list[Any]:
    """All that decides what `gather` gives, but for the cleaning's own code: plain values that
    change when a source does. Raises DataError where a source is not to be had.
    """
    data = recipe.data
    settings = data.model_dump(mode="json", exclude={"source", "validation", "test"})
    parts = dict(zip(PARTS, (data.source, data.validation, data.test), strict=True))
    contents = {
        part: sources.fingerprint(source, data, part) if isinstance(source, str) else source
        for part, source in parts.items()
    }
    return [recipe.task, settings, contents]


def repeats(sides: dict[Part, Side]) -> tuple[int, int]:
    """Rows whose text stands in an earlier row, and texts that have several labels."""
    labels_of: dict[bytes, set[Label]] = {}
    num_rows = 0
    for side in sides.values():
        for key, label in zip(side.digests, side.labels, strict=True):
            labels_of.setdefault(key, set()).add(label)
            num_rows += 1
    return num_rows - len(labels_of), sum(len(labels) > 1 for labels in labels_of.values())


def _usable(
    source: str, part: Part, recipe: Recipe, clean: Callable[[str], str]
) -> tuple[Side, int, tuple[Skip, ...]]:
    """The rows of `source` that have a text and a label, how many were read, and the others."""
    rows = sources.read(source, recipe.data, part, labelled=recipe.task != "masked-lm")
    skips = Skips(rows.unit, rows.skipped)
    found = labelling.parse(rows, recipe.task, recipe.data, skips)
    side = Side(f"{source} {rows.unit}", [], [], [], [])
    for text, label, number in zip(map(clean, rows.texts), found, rows.numbers, strict=True):
        if not text and label is not None:
            skips.add("no text", number)
        elif label is not None:
            side.texts.append(text)
            side.labels.append(label)
            side.digests.append(digest(text))
            side.numbers.append(number)
    if not side.texts:
        why = "; ".join(f"{skip.reason}: {skip.rows} rows" for skip in skips.all())
        raise DataError(f"{source}: no row can be used; {why}")
    if part == "train":
        return side, rows.num_read, skips.all()
    named = tuple(replace(skip, reason=f"{part}: {skip.reason}") for skip in skips.all())
    return side, rows.num_read, named


def _apart(sides: dict[Part, Side]) -> tuple[dict[Part, Side], int]:
    """The sides without texts that a later side holds, and how many rows that cost."""
    train, validation, test = (sides[part] for part in PARTS)
    kept = {
        "train": train.where(unseen(train.digests, [*validation.digests, *test.digests])),
        "validation": validation.where(unseen(validation.digests, test.digests)),
        "test": test,
    }
    before, after = (sum(len(s.texts) for s in each.values()) for each in (sides, kept))
    return {part: kept[part] for part in PARTS}, before - after


def _check(sides: dict[Part, Side], held_out: dict[Part, float | str]) -> None:
    """Raise a DataError where a side that was asked for has no row."""
    if not sides["train"].texts:
        raise DataError(
            "no row is left to train on: the held-out rows took them all; lower data.validation "
            "and data.test, or give other sources"
        )
    for part, wanted in held_out.items():
        if not wanted or sides[part].texts:
            continue
        way_out = f"the source is too small for that: raise data.{part}, or set data.{part}=0"
        if isinstance(wanted, str):
            way_out = "every text of it is in data.test"
        raise DataError(f"data.{part} = {wanted!r} holds out no row; {way_out}")
