"""Texts laid end to end, what the models compute on: nothing is padded, whatever comes together.

Knows no words, no labels and no model.

    backend.run(Packed.of(rows, positions))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

INPUTS = ("ids", "texts", "positions", "reads")  # of a network, and of a graph made from it


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
