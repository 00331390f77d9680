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
from trainers.models.static_rows import StaticRows, lay_into_static_rows, round_up
from trainers.models.window_pool import WindowPool
from trainers.parallel.pipeline import DeviceBatch

EVALUATION_EPOCH = 2**31 - 1  # the epoch whose masks every evaluation uses


class Collator:
    """Collates micro-batches.

    multiple: a further text of pads makes their tokens one of it. row_widths: see `Device`.
    """

    def __init__(
        self,
        recipe: Recipe,
        encoder: Encoder,
        transfer: Transfer,
        multiple: int = 1,
        row_widths: Sequence[int] = (),
    ) -> None:
        self._pad_id = encoder.pad_id
        self._recipe, self._multiple = recipe, multiple
        self.device, self._move = transfer.device, transfer.to_device
        self._row_widths = row_widths
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
        sequences, (of_rows, counts) = split.samples.sequences, split.samples.sequences_of(rows)
        static = None
        if self._row_widths and sequences.values.dtype.kind != "f":
            # Weights that are dropped are keyed by row, so there each text has its own.
            shares = self._recipe.model.attention_dropout == 0 or epoch is None
            sizes = sequences.lengths[of_rows].tolist()
            static = lay_into_static_rows(sizes, self._row_widths, shares)
            of_rows = of_rows[static.order]
            rows = of_rows if counts is None else rows
        values, lengths = sequences.take(of_rows), sequences.lengths[of_rows]
        keys = None if epoch is None else sample_keys(seed, epoch, of_rows)
        reads, targets = None, split.take_targets(rows)
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
        teacher = None if split.teacher is None else split.teacher[rows]
        packed, count = None, None
        if values.dtype.kind == "f":
            inputs = self._move(values.reshape(len(rows), -1))
        else:
            pads, width = None, 0
            if static is not None:
                pads, width, count = static.pads, static.width, len(targets)
                values, keys, reads = self._fill_rows(static, values, lengths, keys, reads)
                wanted = len(reads) if counts is None else round_up(count)
                targets = _repeat_first(targets, wanted)
                teacher = None if teacher is None else _repeat_first(teacher, wanted)
            else:
                values, lengths, keys, reads = self._fill_up(values, lengths, keys, reads)
            inputs = self._move(values)[None].long()
            packed = PackedTexts.from_lengths(
                lengths,
                self._move,
                None if reads is None else self._move(reads),
                None if keys is None else self._move(keys),
                pads,
                width,
            )
        return DeviceBatch(
            inputs=inputs,
            packed=packed,
            targets=self._move(targets),
            weight=micro_batch.weight,
            teacher=None if teacher is None else self._move(teacher),
            rows=rows,
            count=count,
            pool=None if counts is None else self._pool_windows(counts, static, len(targets)),
        )

    def _pool_windows(
        self, counts: np.ndarray, static: StaticRows | None, num_targets: int
    ) -> WindowPool | None:
        """Return what makes a row of each text with `counts` [b] windows; None of one each."""
        windows = self._recipe.data.windows
        assert windows is not None, "the encoder of the recipe made them"
        if static is not None:
            shape = num_targets, round_up(int(counts.max()))
            return WindowPool.from_counts(counts, windows.pool, self._move, static.order, shape)
        if counts.max() == 1:
            return None
        return WindowPool.from_counts(counts, windows.pool, self._move)

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

    def _fill_rows(
        self,
        static: StaticRows,
        values: np.ndarray,
        lengths: np.ndarray,
        keys: np.ndarray | None,
        reads: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Insert pads, and repeat what is read until there is a power of two of it."""
        ends = np.cumsum(lengths)
        values = np.insert(values, ends.repeat(static.pads), self._pad_id)
        shifts = np.cumsum(static.pads) - static.pads  # of the tokens of each text
        reads = ends - lengths if reads is None else reads
        reads = reads + shifts[np.searchsorted(ends, reads, side="right")]
        wanted = round_up(len(reads))
        if keys is not None:
            keys = np.pad(keys, (0, max(wanted, len(values) // static.width, len(keys) + 1)))
        return values, keys, _repeat_first(reads, wanted)


def _repeat_first(array: np.ndarray, wanted: int) -> np.ndarray:
    """Return an array with its first row repeated behind, `wanted` rows in all."""
    return np.concatenate([array, array[:1].repeat(wanted - len(array), axis=0)])
