"""Assign rows to train, validation and test by their text alone.

The same text always falls into the same split, whatever the order of the rows, the seed of the
recipe or the other rows; so no duplicate is both learned and judged.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

SplitName = Literal["train", "validation", "test"]

TRAIN, VALIDATION, TEST = range(3)


def text_digest(text: str) -> bytes:
    """Return the identity of a text: 32 bytes of SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def assign_splits(digests: Sequence[bytes], validation: float, test: float) -> np.ndarray:
    """Return TRAIN, VALIDATION or TEST for each text, `[n]` int8, in about those shares.

    The first eight bytes of the digest are a number in [0, 1): below `test` the text is held out
    for the test, in the next `validation` for validation.
    """
    draws = np.frombuffer(b"".join(each[:8] for each in digests), dtype=">u8") / 2.0**64
    parts = np.full(len(digests), TRAIN, dtype=np.int8)
    parts[draws < test + validation] = VALIDATION
    parts[draws < test] = TEST
    return parts


def mask_unseen(digests: Sequence[bytes], held_out: Iterable[bytes]) -> np.ndarray:
    """Return which texts are not among those held out, `[n]` bool."""
    known = set(held_out)
    return np.array([each not in known for each in digests], dtype=bool)


def spread_indices(total: int, count: int) -> np.ndarray:
    """Return `count` of `total` indices, `[count]` int64, one drawn from each of `count` stretches.

    A fixed step would meet only one class where classes alternate, the first rows only one where
    the file is sorted by class.
    """
    if count >= total:
        return np.arange(total)
    edges = np.arange(count + 1) * total // count
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])
