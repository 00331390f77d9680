"""Pool the outputs of a text's windows to one row: the one function of training and serving.

`data.windows` reads a long text in overlapping windows; see `trainers.config.windows`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.config.windows import Pool


@dataclass(frozen=True, eq=False)
class WindowPool:
    """Which outputs are of the windows of one text.

    places: [b, m] int64, the outputs of the windows of each text, of which the one with most has m;
    any number where a text has fewer. present: [b, m] bool, where it has them.
    """

    places: Tensor
    present: Tensor
    kind: Pool

    @classmethod
    def from_counts(
        cls,
        counts: np.ndarray,
        kind: Pool,
        move: Callable[[np.ndarray], Tensor] = torch.from_numpy,
        order: np.ndarray | None = None,
        shape: tuple[int, int] | None = None,
    ) -> WindowPool:
        """Describe texts of `counts` [b] windows each. move: to their device.

        order: [w] the windows in the order of their outputs; None: as they stand in the texts.
        shape: at least (b, m), filled up with repetitions of the first text, where a device needs
        few shapes.
        """
        most = int(counts.max())
        starts = np.cumsum(counts) - counts
        columns = np.arange(most)
        present = columns < counts[:, None]
        places = np.where(present, starts[:, None] + columns, starts[:, None])
        if order is not None:
            rank = np.empty(len(order), dtype=np.int64)
            rank[order] = np.arange(len(order))
            places = rank[places]
        if shape is not None:
            rows = np.r_[np.arange(len(counts)), np.zeros(shape[0] - len(counts), dtype=np.int64)]
            wide = (0, 0), (0, shape[1] - most)
            places, present = np.pad(places, wide)[rows], np.pad(present, wide)[rows]
        return cls(move(places), move(present), kind)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Those on the device."""
        return self.places, self.present

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the pooled rows [b, n] of outputs [w, n], in fp32."""
        # Gathered, not summed by index: the sum of an index has no fixed order on a GPU.
        of_text, present = outputs.float()[self.places], self.present[..., None]
        if self.kind == "max":
            return of_text.masked_fill(~present, float("-inf")).amax(dim=1)
        return of_text.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)
