"""Texts laid end to end, without padding: the batch that models compute on.

backend.run(PackedBatch.from_rows(rows, positions))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INPUTS = ("ids", "texts", "positions", "reads")  # of a network
FOLD_INPUTS = ("grid", "owners", "places")  # further inputs of a graph that is exported from it


@dataclass(frozen=True)
class PackedBatch:
    """Texts end to end.

    ids: [t] int64 tokens; of a linear model numbers, float32. texts: [t] int64, which text a token
    is of. positions: [t] int64, its row of the position table. reads: [n] int64, the tokens whose
    outputs are asked for: the first of each text; of a masked language model the masks. lengths:
    tokens of each text.
    """

    ids: np.ndarray
    texts: np.ndarray
    positions: np.ndarray
    reads: np.ndarray
    lengths: tuple[int, ...]

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[np.ndarray],
        positions: Sequence[np.ndarray],
        reads: np.ndarray | None = None,
    ) -> "PackedBatch":
        """Pack the tokens of each text and their positions. reads: None for the first of each."""
        lengths = tuple(map(len, rows))
        ids = np.concatenate(rows)
        return cls(
            ids=ids.astype(np.int64) if ids.dtype.kind == "i" else ids,
            texts=np.repeat(np.arange(len(rows)), lengths),
            positions=np.concatenate(positions),
            reads=np.cumsum((0, *lengths[:-1])) if reads is None else reads,
            lengths=lengths,
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of INPUTS."""
        return self.ids, self.texts, self.positions, self.reads

    @property
    def graph_inputs(self) -> dict[str, np.ndarray]:
        """The inputs of an exported graph by name (`trainers.models.attention.PaddedView`)."""
        grid, owners, places = pad_into_rows(self.lengths)
        return dict(zip((*INPUTS, *FOLD_INPUTS), (*self.arrays, grid, owners, places), strict=True))


def pad_into_rows(lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay texts of `lengths` into rows as wide as the longest: grid, owners, places.

    A graph cannot loop over texts, so attention runs on a padded [rows, width] view. Its cost
    grows with rows * width^2: rows no wider than the longest text keep it near that of attention
    text by text, and several short texts share a row (a mask keeps each to itself), so that one
    long text among short ones does not pad all of them. First fit, the longest first.
    """
    width = max(lengths)
    starts = np.cumsum((0, *lengths[:-1]))
    used: list[int] = []  # tokens in each row
    slots: list[tuple[int, int, int]] = []  # text, row, column
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((r for r, taken in enumerate(used) if taken + lengths[text] <= width), None)
        if row is None:
            row = len(used)
            used.append(0)
        slots.append((text, row, used[row]))
        used[row] += lengths[text]
    grid = np.zeros((len(used), width), dtype=np.int64)
    owners = np.full((len(used), width), -1, dtype=np.int64)
    places = np.empty(sum(lengths), dtype=np.int64)
    for text, row, column in slots:
        start, length = int(starts[text]), lengths[text]
        grid[row, column : column + length] = np.arange(start, start + length)
        owners[row, column : column + length] = text
        first = row * width + column
        places[start : start + length] = np.arange(first, first + length)
    return grid, owners, places
