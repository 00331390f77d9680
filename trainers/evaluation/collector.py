"""Gather the logits of held-out rows from the ranks that computed them."""

import numpy as np
from torch import Tensor

from trainers.data.dataset_cache import DatasetSplit
from trainers.distributed.object_collectives import gather_from_ranks
from trainers.evaluation.predictions import Predictions, select_rows


class PredictionCollector:
    """Collects the logits of an evaluation: give `add` to `TrainingLoop.evaluate`, then gather.

    num_labels: columns of the logits, 1 for regression.
    """

    def __init__(self, split: DatasetSplit, num_labels: int) -> None:
        self._split, self._width = split, max(1, num_labels)
        self._kept = select_rows(len(split), self._width)
        self._is_kept = np.zeros(len(split), dtype=bool)
        self._is_kept[self._kept] = True
        self._rows: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []

    def add(self, rows: np.ndarray, logits: Tensor) -> None:
        """Keep the logits [b, num_labels] of the rows [b] of the split, as far as they are kept."""
        kept = self._is_kept[rows]
        if kept.any():
            self._rows.append(rows[kept])
            self._logits.append(logits.float().cpu().numpy()[kept])

    def gather(self) -> Predictions | None:
        """Return the predictions of all ranks on rank 0, None on the others. Collective."""
        none = np.empty(0, dtype=np.int64), np.empty((0, self._width), dtype=np.float32)
        rows = np.concatenate([none[0], *self._rows])
        logits = np.concatenate([none[1], *self._logits])
        parts = gather_from_ranks(lambda: (rows, logits))
        if not parts:
            return None
        rows = np.concatenate([each for each, _ in parts])
        logits = np.concatenate([each for _, each in parts])
        order = np.argsort(rows)
        rows, logits = rows[order], logits[order]
        assert np.array_equal(rows, self._kept), "every kept row is evaluated on one rank"
        return Predictions(rows, logits, self._split.take_targets(rows), len(self._split))
