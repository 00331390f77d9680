"""Texts laid end to end, what the models compute on: nothing is padded, whatever comes together.

Knows no words, no labels and no model.

    backend.run(Packed.of(rows, positions))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INPUTS = ("ids", "texts", "positions", "reads")  # of a network
FOLD = ("grid", "owners", "places")  # more of a graph that is made from it


@dataclass(frozen=True)
class Packed:
    """Texts end to end.

    ids: [t] int64 tokens; of a linear model numbers, float32. texts: [t] int64, which text a token
    is of. positions: [t] int64, its row of the position table. reads: [n] int64, the tokens whose
    outputs are asked for: the first of each text; of a masked language model the masks.
    """

    ids: np.ndarray
    texts: np.ndarray
    positions: np.ndarray
    reads: np.ndarray
    spans: tuple[int, ...]

    @classmethod
    def of(
        cls,
        rows: Sequence[np.ndarray],
        positions: Sequence[np.ndarray],
        reads: np.ndarray | None = None,
    ) -> "Packed":
        """Of the tokens of each text and their positions. reads: None for the first of each."""
        spans = tuple(map(len, rows))
        ids = np.concatenate(rows)
        return cls(
            ids=ids.astype(np.int64) if ids.dtype.kind == "i" else ids,
            texts=np.repeat(np.arange(len(rows)), spans),
            positions=np.concatenate(positions),
            reads=np.cumsum((0, *spans[:-1])) if reads is None else reads,
            spans=spans,
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """In the order of INPUTS."""
        return self.ids, self.texts, self.positions, self.reads

    @property
    def for_graph(self) -> dict[str, np.ndarray]:
        """By name, with how texts lie in rows to attend (`trainers.models.attention.Fold`)."""
        grid, owners, places = folded(self.spans)
        return dict(zip((*INPUTS, *FOLD), (*self.arrays, grid, owners, places), strict=True))


def folded(spans: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts end to end, of lengths `spans`, in rows as wide as the longest: grid, owners, places.

    The longest first, each into the first row that has room.
    """
    width = max(spans)
    starts = np.cumsum((0, *spans[:-1]))
    filled: list[int] = []  # of each row
    ends: list[tuple[int, int, int]] = []  # text, row, column
    for text in sorted(range(len(spans)), key=lambda text: -spans[text]):
        row = next((r for r, used in enumerate(filled) if used + spans[text] <= width), None)
        if row is None:
            row = len(filled)
            filled.append(0)
        ends.append((text, row, filled[row]))
        filled[row] += spans[text]
    grid = np.zeros((len(filled), width), dtype=np.int64)
    owners = np.full((len(filled), width), -1, dtype=np.int64)
    places = np.empty(sum(spans), dtype=np.int64)
    for text, row, column in ends:
        start, span = int(starts[text]), spans[text]
        grid[row, column : column + span] = np.arange(start, start + span)
        owners[row, column : column + span] = text
        first = row * width + column
        places[start : start + span] = np.arange(first, first + span)
    return grid, owners, places
