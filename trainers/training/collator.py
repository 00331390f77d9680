"""Rows of a split as batches on a device: collated, masked, keyed, weighed.

What a row becomes is a function of (seed, epoch, row) alone, however rows are put together. Knows
no model and no ranks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.config.recipe import Recipe
from trainers.data.masking import mask_tokens
from trainers.data.microbatch import MicroBatch
from trainers.data.prepare import Split
from trainers.data.tokenizer import Encoder, TextEncoder
from trainers.models.build import padded
from trainers.models.dropout import sample_keys
from trainers.parallel.pipeline import Batch

EVALUATION = 2**31 - 1  # the epoch whose masks every evaluation uses


class Feed:
    """Makes batches for one rank. multiple: sequence lengths are multiples of it."""

    def __init__(
        self, recipe: Recipe, encoder: Encoder, place: torch.device, multiple: int = 1
    ) -> None:
        self.pad = encoder.pad
        self._recipe, self._place, self._multiple = recipe, place, multiple
        self._vocabulary = None
        if recipe.task == "masked-lm":
            assert isinstance(encoder, TextEncoder)
            self._vocabulary = encoder.vocabulary()

    def batches(
        self, split: Split, micro_batches: Sequence[MicroBatch], epoch: int | None
    ) -> list[Batch]:
        """The micro-batches as tensors. epoch: None for an evaluation."""
        return [self._batch(split, micro_batch, epoch) for micro_batch in micro_batches]

    def _batch(self, split: Split, micro_batch: MicroBatch, epoch: int | None) -> Batch:
        rows, seed = micro_batch.rows, self._recipe.seed
        values, present = padded(split.samples, rows, self.pad, self._multiple)
        keys = None if epoch is None else self._on(sample_keys(seed, epoch, rows))
        positions = None
        if self._vocabulary is None:
            targets = self._on(split.targets[rows])
        else:
            masked = mask_tokens(
                values,
                present,
                rows,
                EVALUATION if epoch is None else epoch,
                seed,
                self._recipe.masking,
                self._vocabulary,
            )
            values, positions = masked.ids, self._on(masked.positions)
            targets = self._on(masked.targets)
        inputs = self._on(values)
        return Batch(
            inputs=inputs if inputs.is_floating_point() else inputs.long(),
            mask=None if present.all() else self._on(present),
            keys=keys,
            positions=positions,
            targets=targets,
            weight=micro_batch.weight,
            teacher=None if split.teacher is None else self._on(split.teacher[rows]),
        )

    def _on(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._place)
