"""Encoded texts end to end in one array, so that nothing is padded before it must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class RaggedArray:
    """Encoded texts, concatenated.

    values: `[total]` int32 token ids, or float32 numbers. offsets: `[n + 1]` int64; sample i is
    values[offsets[i]:offsets[i + 1]]. windows: lengths (int32) of the windows that lie end to end
    in each sample; None: every sample is one sequence.
    """

    values: np.ndarray
    offsets: np.ndarray
    windows: RaggedArray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Length of each sample, `[n]` int64."""
        return np.diff(self.offsets)

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the values of sample `row`, a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @cached_property
    def sequences(self) -> RaggedArray:
        """What a model reads, one by one: every window, or every sample where there are none."""
        if self.windows is None:
            return self
        ends = np.cumsum(self.windows.values, dtype=np.int64)
        return RaggedArray(self.values, np.append(np.int64(0), ends))

    def sequences_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return which `sequences` the samples `rows` consist of, and how many each.

        None instead of their numbers where every sample is one sequence.
        """
        if self.windows is None:
            return rows, None
        counts = self.windows.lengths[rows]
        shifts = self.windows.offsets[rows] - (np.cumsum(counts) - counts)
        return np.repeat(shifts, counts) + np.arange(counts.sum()), counts

    def take(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the values [t] of the samples `rows`, end to end, in a fresh array."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        shifts = self.offsets[rows] - (np.cumsum(lengths) - lengths)
        places = np.repeat(shifts, lengths) + np.arange(lengths.sum())
        taken: np.ndarray = self.values[places]
        return taken


def ragged_from_rows(rows: Sequence[np.ndarray], dtype: type) -> RaggedArray:
    """Concatenate the arrays `rows` as values of `dtype`."""
    lengths = np.array([0, *map(len, rows)], dtype=np.int64)
    values: np.ndarray = np.concatenate([np.empty(0, dtype=dtype), *rows], dtype=dtype)
    return RaggedArray(values, np.cumsum(lengths))


def concat_ragged(parts: Sequence[RaggedArray]) -> RaggedArray:
    """Concatenate the samples of `parts`, in order; all of them have windows, or none."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return RaggedArray(np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
    lengths = np.concatenate([np.zeros(1, dtype=np.int64), *(part.lengths for part in parts)])
    values, of_parts = [part.values for part in parts], [part.windows for part in parts]
    windows = [each for each in of_parts if each is not None]
    return RaggedArray(
        np.concatenate(values), np.cumsum(lengths), concat_ragged(windows) if windows else None
    )
