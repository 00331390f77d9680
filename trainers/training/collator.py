"""Data collator: packs, masks and keys the rows of micro-batches, and moves them to the device.

What a row becomes is a function of (seed, epoch, row) alone, however the batch is cut.
"""

from collections.abc import Sequence

import numpy as np

from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit
from trainers.data.masking import mask_tokens
from trainers.data.microbatch import MicroBatch, sample_keys
from trainers.data.tokenizer import Encoder, TextEncoder
from trainers.distributed.transfer import Transfer
from trainers.models.packed import PackedTexts
from trainers.parallel.pipeline import DeviceBatch

EVALUATION_EPOCH = 2**31 - 1  # the epoch whose masks every evaluation uses


class Collator:
    """Collates micro-batches. multiple: a further text of pads makes their tokens one of it."""

    def __init__(
        self, recipe: Recipe, encoder: Encoder, transfer: Transfer, multiple: int = 1
    ) -> None:
        self._pad_id = encoder.pad_id
        self._recipe, self._multiple = recipe, multiple
        self._move = transfer.to_device
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
        values, lengths = split.samples.take(rows), split.samples.lengths[rows]
        keys = None if epoch is None else sample_keys(seed, epoch, rows)
        reads, targets = None, split.targets[rows]
        if self._vocabulary is not None:
            masked = mask_tokens(
                values,
                lengths,
                rows,
                EVALUATION_EPOCH if epoch is None else epoch,
                seed,
                self._recipe.masking,
                self._vocabulary,
            )
            values, reads, targets = masked.ids, masked.positions, masked.targets
        packed = None
        if values.dtype.kind == "f":
            inputs = self._move(values.reshape(len(rows), -1))
        else:
            values, lengths, keys, reads = self._fill_up(values, lengths, keys, reads)
            inputs = self._move(values)[None].long()
            packed = PackedTexts.from_lengths(
                lengths,
                self._move,
                None if reads is None else self._move(reads),
                None if keys is None else self._move(keys),
            )
        return DeviceBatch(
            inputs=inputs,
            packed=packed,
            targets=self._move(targets),
            weight=micro_batch.weight,
            teacher=None if split.teacher is None else self._move(split.teacher[rows]),
            rows=rows,
        )

    def _fill_up(
        self,
        values: np.ndarray,
        lengths: np.ndarray,
        keys: np.ndarray | None,
        reads: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Append a text of pads, which nothing reads, to make the tokens a multiple."""
        lacking = -len(values) % self._multiple
        if not lacking:
            return values, lengths, keys, reads
        if reads is None:
            reads = np.cumsum(lengths) - lengths
        pads = np.full(lacking, self._pad_id, dtype=values.dtype)
        keys = None if keys is None else np.append(keys, 0)
        return np.append(values, pads), np.append(lengths, lacking), keys, reads
