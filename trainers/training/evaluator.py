"""Evaluation of a split: exact metrics over all ranks, whatever the layout."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit, PreparedDataset
from trainers.data.microbatch import MicroBatch
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.parallel.parallelize import ParallelModel
from trainers.parallel.pipeline import DeviceBatch, Pipeline
from trainers.training import figures
from trainers.training.autocast import Autocast
from trainers.training.collator import Collator
from trainers.training.metrics import MetricAccumulator, Metrics
from trainers.training.target_scale import TargetScale

MICRO_BATCHES = 64  # on the device together

Collect = Callable[[np.ndarray, Tensor], None]
Cut = Callable[[np.ndarray, np.ndarray], list[list[MicroBatch]]]


class Evaluator:
    """Evaluates the model of a training loop. cut: cuts rows of given lengths, for all ranks."""

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        parallel: ParallelModel,
        collator: Collator,
        pipeline: Pipeline,
        autocast: Autocast,
        cut: Cut,
        scale: TargetScale,
    ) -> None:
        self._recipe, self._data, self._parallel = recipe, data, parallel
        self._collator, self._pipeline, self._autocast = collator, pipeline, autocast
        self._cut, self._scale = cut, scale

    def evaluate(
        self,
        split: DatasetSplit,
        collect: Collect | None = None,
        shift: np.ndarray | None = None,
        is_exact: bool = True,
        temperature: float = 1.0,
    ) -> Metrics:
        """Compute the metrics of all rows of `split`, exact over all ranks.

        is_exact: in fp32, as they are served, and with the figures of the order of scores; else an
        accelerator takes the training precision, and of those figures there is the recipe's metric.
        collect: called with the rows [b] and the logits [b, num_labels] of each micro-batch, each
        row on one rank alone. shift: [num_labels], see `MetricAccumulator`. temperature: divides
        the logits first.
        """
        task, mesh = self._recipe.task, self._parallel.mesh
        is_ranked = task != "masked-lm" and (is_exact or self._recipe.metric in figures.RANKED)
        is_kept = np.zeros(len(split), dtype=bool)
        if is_ranked:
            is_kept[figures.select_rows(len(split), max(1, len(self._data.labels)))] = True
        accumulator = MetricAccumulator(
            task, max(1, len(self._data.labels)), shift, self._collator.device
        )
        shares = self._cut(np.arange(len(split)), split.samples.lengths)
        micro_batches = shares[mesh.dp_rank]
        deviation = 0.0 if split.teacher is None else float(np.std(split.targets))

        def count_batch(logits: Tensor, batch: DeviceBatch) -> None:
            # Batches of weight 0 only pad a rank to as many micro-batches as the others.
            counts, num = batch.weight and mesh.is_tp_rank0, batch.num_targets
            logits, targets = logits[:num], batch.targets[:num]
            if task == "masked-lm":
                # The losses of a sharded vocabulary are a collective: every rank computes them.
                losses, correct = token_losses(logits, targets, self._parallel.vocab_shard)
                if counts:
                    accumulator.add_tokens(losses, correct)
            elif counts:
                logits = self._scale.restore(logits)
                logits = logits if temperature == 1 else logits.float() / temperature
                accumulator.add_batch(logits, targets)
                if batch.rows is not None:
                    if collect is not None:
                        collect(batch.rows, logits)
                    if is_ranked:
                        kept = torch.from_numpy(is_kept[batch.rows]).to(logits.device)
                        accumulator.keep_scores(logits[kept], targets[kept])
                if batch.teacher is not None:
                    accumulator.add_agreement(logits, batch.teacher[:num], deviation)

        self._parallel.train(False)
        with self._autocast.exact() if is_exact else nullcontext():
            for start in range(0, len(micro_batches), MICRO_BATCHES):
                chunk = micro_batches[start : start + MICRO_BATCHES]
                batches = self._collator.collate(split, chunk, epoch=None)
                self._pipeline.predict(batches, count_batch)
        self._parallel.train()
        if mesh.device_mesh is not None:
            accumulator.all_reduce()
        return accumulator.compute_metrics(self._data.labels)
