"""Assign rows to train, validation and test by their texts and labels, never by their order.

All rows of one text fall on one side, whatever the order of the rows or the seed of the recipe; so
no duplicate is both learned and judged.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

SplitName = Literal["train", "validation", "test"]
# What the splits of a data set are called, in it or in the names of its files.
SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}

TRAIN, VALIDATION, TEST = range(3)
_HASHES = 2.0**64


def text_digest(text: str) -> bytes:
    """Return the identity of a text: 32 bytes of SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def text_hash(text: str) -> int:
    """Return a uniform number below 2^64 that stands for a text: the start of its digest."""
    return int.from_bytes(text_digest(text)[:8], "big")


def assign_splits(hashes: Sequence[int] | np.ndarray, validation: float, test: float) -> np.ndarray:
    """Return TRAIN, VALIDATION or TEST for each text, `[n]` int8, in about those shares.

    hashes: `[n]`, `text_hash` of each. Its share of 2^64 below `test` is held out for the test, the
    next `validation` for validation: rows that are added later move no text.
    """
    draws = np.asarray(hashes, dtype=np.uint64) / _HASHES
    parts = np.full(len(draws), TRAIN, dtype=np.int8)
    parts[draws < test + validation] = VALIDATION
    parts[draws < test] = TEST
    return parts


def stratify_splits(
    hashes: np.ndarray,
    labels: Sequence[tuple[str, ...]],
    codes: np.ndarray,
    validation: float,
    test: float,
) -> np.ndarray:
    """Return TRAIN, VALIDATION or TEST for each row, `[n]` int8: each class gives its shares.

    hashes: `[n]` uint64, `text_hash` of each row. codes: `[n]`, row i has labels[codes[i]], which
    are one or several, or none. A text counts once, for the label of any of its rows that the
    fewest rows have. Of the m texts of a class, in the order of their hashes, the first test * m
    are held out for the test and the next validation * m for validation, rounded up with the
    probability of what is left over, as a hash of the class decides: so the shares are met to one
    text in each class, and on average over small ones. One text always trains, so a class of one
    text does.

    A text that is added later moves no text of another class and, at each border between two sides
    of its class, at most one; but texts of several labels move where it changes which is rarest.
    """
    if not len(hashes):
        return np.empty(0, dtype=np.int8)
    names, ranks = _rank_labels(labels, codes)
    order = np.argsort(hashes, kind="stable")
    is_first = np.append(True, np.diff(hashes[order]) != 0)  # row of its text
    strata = np.minimum.reduceat(ranks[codes[order]], np.flatnonzero(is_first))  # of each text
    sizes = np.bincount(strata, minlength=len(names))
    by_stratum = np.argsort(strata, kind="stable")  # and within one by hash
    places = np.empty(len(strata), dtype=np.int64)
    places[by_stratum] = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    lots = np.array([text_hash(name) for name in names], dtype=np.uint64) / _HASHES
    most = np.maximum(sizes - 1, 0)
    held_out = np.minimum(np.floor(sizes * (test + validation) + lots), most)
    tested = np.minimum(np.floor(sizes * test + lots), most)
    sides = np.full(len(strata), TRAIN, dtype=np.int8)
    sides[places < held_out[strata]] = VALIDATION
    sides[places < tested[strata]] = TEST
    parts = np.empty(len(hashes), dtype=np.int8)
    parts[order] = sides[np.cumsum(is_first) - 1]
    return parts


def _rank_labels(
    labels: Sequence[tuple[str, ...]], codes: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Return the names of all labels, the rarest first, and the rarest in each of `labels`.

    codes: `[n]`, the place in `labels` of what each row has.
    """
    named = [label or ("",) for label in labels]  # rows without a label are a class here, too
    rows = dict.fromkeys(sorted({name for label in named for name in label}), 0)
    counts = np.bincount(codes, minlength=len(named)).tolist()
    for label, count in zip(named, counts, strict=True):
        for name in label:
            rows[name] += count
    names = sorted(rows, key=lambda name: (rows[name], name))
    index = {name: rank for rank, name in enumerate(names)}
    ranks = [min(index[name] for name in label) for label in named]
    return names, np.array(ranks, dtype=np.int32)


def mask_unseen(hashes: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Return which texts are not among those held out, `[n]` bool; both by `text_hash`."""
    return ~np.isin(hashes, held_out)


def spread_indices(total: int, count: int) -> np.ndarray:
    """Return `count` of `total` indices, `[count]` int64, one drawn from each of `count` stretches.

    A fixed step would meet only one class where classes alternate, the first rows only one where
    the file is sorted by class.
    """
    if count >= total:
        return np.arange(total)
    edges = np.arange(count + 1) * total // count
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])
