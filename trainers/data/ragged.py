"""Encoded texts, end to end in one array: ragged, so that nothing is padded before it must be.

Knows no tokenizer and no files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Encoded texts, end to end. values: `[total]` int32 token ids, or float32 numbers; offsets:
    `[n + 1]` int64, sample i is values[offsets[i]:offsets[i + 1]].
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """`[n]` int64."""
        return np.diff(self.offsets)

    def collate(self, rows: Sequence[int] | np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples `rows` side by side, padded on the right to the longest of them.

        Returns fresh arrays: values `[b, s]` of the dtype of `values`, mask `[b, s]` bool.
        """
        rows = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.offsets[rows], self.lengths[rows]
        columns = np.arange(lengths.max(initial=0))
        mask = columns < lengths[:, None]
        padded = np.full(mask.shape, pad, dtype=self.values.dtype)
        padded[mask] = self.values[(starts[:, None] + columns)[mask]]
        return padded, mask


def ragged(rows: Sequence[np.ndarray], dtype: type) -> Samples:
    """The arrays `rows` as Samples of `dtype`."""
    lengths = np.array([0, *map(len, rows)], dtype=np.int64)
    return Samples(np.concatenate([np.empty(0, dtype=dtype), *rows]), np.cumsum(lengths))


def joined(parts: Sequence[Samples]) -> Samples:
    """All the samples of `parts`, in order."""
    if not parts:
        return Samples(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
    lengths = np.concatenate([np.zeros(1, dtype=np.int64), *(part.lengths for part in parts)])
    return Samples(np.concatenate([part.values for part in parts]), np.cumsum(lengths))
