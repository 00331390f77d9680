"""Data collator: pads, masks and keys the rows of micro-batches, and moves them to the device.

What a row becomes is a function of (seed, epoch, row) alone, however the batch is cut.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit
from trainers.data.masking import mask_tokens
from trainers.data.microbatch import MicroBatch, sample_keys
from trainers.data.tokenizer import Encoder, TextEncoder
from trainers.parallel.pipeline import DeviceBatch

EVALUATION_EPOCH = 2**31 - 1  # the epoch whose masks every evaluation uses


class Collator:
    """Collates micro-batches. multiple: sequence lengths are padded to multiples of it."""

    def __init__(
        self, recipe: Recipe, encoder: Encoder, device: torch.device, multiple: int = 1
    ) -> None:
        self._pad_id = encoder.pad_id
        self._recipe, self._device, self._multiple = recipe, device, multiple
        self._vocabulary = None
        if recipe.task == "masked-lm":
            assert isinstance(encoder, TextEncoder)
            self._vocabulary = encoder.masking_vocabulary()

    def collate(
        self, split: DatasetSplit, micro_batches: Sequence[MicroBatch], epoch: int | None
    ) -> list[DeviceBatch]:
        """Collate the micro-batches. epoch: None for an evaluation."""
        return [self._collate_one(split, micro_batch, epoch) for micro_batch in micro_batches]

    def _collate_one(
        self, split: DatasetSplit, micro_batch: MicroBatch, epoch: int | None
    ) -> DeviceBatch:
        rows, seed = micro_batch.rows, self._recipe.seed
        values, mask = split.samples.collate(rows, self._pad_id, self._multiple)
        keys = None if epoch is None else self._to_device(sample_keys(seed, epoch, rows))
        positions = None
        if self._vocabulary is None:
            targets = self._to_device(split.targets[rows])
        else:
            masked = mask_tokens(
                values,
                mask,
                rows,
                EVALUATION_EPOCH if epoch is None else epoch,
                seed,
                self._recipe.masking,
                self._vocabulary,
            )
            values, positions = masked.ids, self._to_device(masked.positions)
            targets = self._to_device(masked.targets)
        inputs = self._to_device(values)
        return DeviceBatch(
            inputs=inputs if inputs.is_floating_point() else inputs.long(),
            mask=None if mask.all() else self._to_device(mask),
            keys=keys,
            positions=positions,
            targets=targets,
            weight=micro_batch.weight,
            teacher=None if split.teacher is None else self._to_device(split.teacher[rows]),
            rows=rows,
        )

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)
