"""The batches of each training step: ordered, cut, packed and on the device before they are due.

What a step computes on is a function of (seed, epoch, step) alone, so beside a device that computes
it is prepared in a thread while the step before does, and a resumed run prepares the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from torch import Tensor

from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit
from trainers.data.microbatch import (
    MicroBatch,
    epoch_order,
    global_batch_rows,
    steps_per_epoch,
)
from trainers.distributed.transfer import Transfer
from trainers.parallel.pipeline import DeviceBatch
from trainers.training.collator import Collator

Cut = Callable[[np.ndarray, np.ndarray], list[list[MicroBatch]]]


@dataclass(frozen=True)
class StepBatches:
    """What a step computes on.

    rows: of the global batch. batches: this rank's. token_ids: [n] the distinct tokens of the
    global batch, where the embeddings' gradient is reduced row by row. tokens, squared_tokens,
    micro_batches: of all ranks. computed_tokens: with pads, as if all ranks had this one's share of
    them. mark: of the copies, see `Transfer`.
    """

    step: int
    epoch: int
    rows: np.ndarray
    batches: list[DeviceBatch]
    token_ids: Tensor | None
    tokens: int
    squared_tokens: int
    computed_tokens: int
    micro_batches: int
    mark: Any = None

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors on the device."""
        of_batches = [tensor for batch in self.batches for tensor in batch.tensors]
        return of_batches + ([] if self.token_ids is None else [self.token_ids])


class StepPreparer:
    """Prepares steps of a run on this rank, beside an accelerator the next one ahead, in a thread.

    cut: cuts a global batch, given its rows and their lengths, for every data-parallel rank.
    needs_ids: whether steps need `token_ids`.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: DatasetSplit,
        collator: Collator,
        transfer: Transfer,
        cut: Cut,
        dp_rank: int,
        needs_ids: bool,
    ) -> None:
        self._recipe, self._train, self._collator = recipe, train, collator
        self._transfer, self._cut, self._dp_rank = transfer, cut, dp_rank
        self._needs_ids = needs_ids
        self._steps_per_epoch = steps_per_epoch(len(train), recipe.global_batch_size)
        self._order: tuple[int, np.ndarray] = -1, np.empty(0, dtype=np.int64)
        # No executor: an interrupt in the middle of its `submit` can leave a lock held that the end
        # of the process waits for. A put is atomic.
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._results: SimpleQueue[StepBatches | Exception] = SimpleQueue()
        self._thread: Thread | None = None
        self._ahead: int | None = None  # the step that the thread prepares

    def get(self, step: int, is_last: bool) -> StepBatches:
        """Return the batches of `step`; begin those of the next, beside a device that computes."""
        if self._ahead == step:
            self._ahead, prepared = None, self._results.get()
            if isinstance(prepared, Exception):
                raise prepared
        else:
            self.forget()
            prepared = self._prepare(step)
        if not is_last and not self._transfer.is_immediate:  # the host would only share its cores
            self._begin(step + 1)
        self._transfer.wait_for(prepared.mark, prepared.tensors)
        return prepared

    def forget(self) -> None:
        """Drop what was prepared ahead, as after a change of the cut."""
        if self._ahead is not None:
            self._ahead, _ = None, self._results.get()

    def _begin(self, step: int) -> None:
        if self._thread is None:
            queues = self._tasks, self._results
            self._thread = Thread(target=_work, args=queues, name="bertha-batches", daemon=True)
            self._thread.start()
            weakref.finalize(self, self._tasks.put, None)  # ends the thread
        self._tasks.put((self._prepare, step))
        self._ahead = step

    def collate(self, prepared: StepBatches) -> list[DeviceBatch]:
        """Cut and collate the batches of a step anew, after a change of the cut."""
        return self._collate(prepared.epoch, self._cut_rows(prepared.rows))

    def _prepare(self, step: int) -> StepBatches:
        rows, epoch = self._rows_of(step)
        samples, sequences = self._train.samples, self._train.samples.sequences
        lengths, (of_rows, _) = samples.lengths[rows], samples.sequences_of(rows)
        shares = self._cut_rows(rows)
        with self._transfer.ahead():
            batches = self._collate(epoch, shares)
            ids = None
            if self._needs_ids:
                distinct = np.unique(samples.take(rows)).astype(np.int64)
                ids = self._transfer.to_device(distinct)
            mark = self._transfer.mark()
        return StepBatches(
            step=step,
            epoch=epoch,
            rows=rows,
            batches=batches,
            token_ids=ids,
            tokens=int(lengths.sum()),
            squared_tokens=int(np.square(sequences.lengths[of_rows]).sum()),
            computed_tokens=int(lengths.sum() * _share_computed(batches)),
            micro_batches=sum(map(len, shares)),
            mark=mark,
        )

    def _rows_of(self, step: int) -> tuple[np.ndarray, int]:
        epoch, index = divmod(step, self._steps_per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, epoch_order(self._recipe.seed, epoch, len(self._train))
        return global_batch_rows(self._order[1], index, self._recipe.global_batch_size), epoch

    def _cut_rows(self, rows: np.ndarray) -> list[list[MicroBatch]]:
        return self._cut(rows, self._train.samples.lengths[rows])

    def _collate(self, epoch: int, shares: Sequence[list[MicroBatch]]) -> list[DeviceBatch]:
        return self._collator.collate(self._train, shares[self._dp_rank], epoch)


def _share_computed(batches: Sequence[DeviceBatch]) -> float:
    """Return the tokens that are computed over those of texts."""
    packed = [batch.packed for batch in batches if batch.packed is not None]
    real = sum(sum(each.lengths) for each in packed)
    return sum(len(each.texts) for each in packed) / real if real else 1.0


def _work(tasks: SimpleQueue[Any], results: SimpleQueue[StepBatches | Exception]) -> None:
    """Prepare steps until there is no preparer; hold nothing of it in between."""
    while (task := tasks.get()) is not None:
        prepare, step = task
        try:
            results.put(prepare(step))
        except Exception as error:  # raised where the step is asked for
            results.put(error)
        del task, prepare
