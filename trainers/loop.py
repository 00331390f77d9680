"""The training loop: global batches in, steps and evaluations out.

`Loop.run()` is a generator of events; whoever consumes them records, saves and reports, so the loop
itself knows no Ray, no files and no clock on the wall. Under a process group every rank runs the
same loop and sees the same events.
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.errors import BerthaError
from trainers.batching import (
    Cost,
    MicroBatch,
    cut,
    global_batch,
    order,
    padding_share,
    steps_per_epoch,
)
from trainers.bert import TextModel
from trainers.data import Data, Split
from trainers.device import Device, autocast_dtype
from trainers.dropout import sample_keys
from trainers.events import Evaluation, Event, Progress, Save, Step
from trainers.metrics import Metrics, Tally
from trainers.model import Model, tensors
from trainers.objective import sample_losses
from trainers.optimization import build_optimizer, learning_rate
from trainers.recipe import Recipe


class TrainingError(BerthaError):
    """A run that cannot go on; the text says why and the way out."""


class Loop:
    """A run in one process: the model, its optimizer, and the position in the data.

    pad: the id that fills short rows. The model is on the device already.
    """

    def __init__(self, recipe: Recipe, data: Data, pad: int, model: Model, device: Device) -> None:
        self.recipe, self.data, self.pad, self.model, self.device = recipe, data, pad, model, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.num_ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.optimizer = build_optimizer(model, recipe, fused=device.fused)
        self.progress = Progress()
        self.steps_per_epoch = steps_per_epoch(len(data.train), recipe.batch.global_size)
        self.total_steps = self.steps_per_epoch * recipe.stopping.epochs
        if recipe.stopping.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.stopping.max_steps)
        self.token_budget = recipe.batch.token_budget or max(
            device.token_budget, recipe.batch.max_length
        )
        hidden = model.bert.config.hidden_size if isinstance(model, TextModel) else 0
        self._cost = Cost(device.overhead_tokens, hidden)
        self._place = device.torch_device()
        self._autocast = autocast_dtype(device, recipe.precision)
        self._parallel: nn.Module = model
        if self.num_ranks > 1:
            self._parallel = _data_parallel(model)

    def state(self) -> dict[str, Any]:
        """The position, as plain values."""
        return asdict(self.progress)

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`; weights and moments are restored by the caller."""
        self.progress = Progress(**state)

    def run(self) -> Iterator[Event]:
        """Train to the end, yielding each step, evaluation, and moment to save.

        Raises TrainingError when the loss is no longer a number.
        """
        every = self.recipe.evaluation.every_steps or self.steps_per_epoch
        save_every = self.recipe.checkpoints.every_steps or every
        epoch, ordered = -1, np.empty(0, dtype=np.int64)
        while self.progress.step < self.total_steps and not self.progress.stopped:
            step = self.progress.step
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                ordered = order(self.recipe.seed, epoch, len(self.data.train))
            rows = global_batch(ordered, step % self.steps_per_epoch, self.recipe.batch.global_size)
            done = self._step(step, epoch, rows)
            yield done
            if not math.isfinite(done.loss):
                raise TrainingError(
                    f"the loss of step {done.step} is {done.loss}; lower optimizer.learning_rate "
                    f"({self.recipe.optimizer.learning_rate:g}), or lengthen schedule.warmup"
                )
            self.progress = replace(self.progress, step=step + 1)
            last = self.progress.step == self.total_steps
            evaluated = self.progress.step % every == 0 or last
            if evaluated and len(self.data.validation):
                yield self._judge(epoch)
            if evaluated or self.progress.step % save_every == 0:
                yield Save(self.progress.step)

    def evaluate(self, split: Split) -> Metrics:
        """The metrics of all rows of `split`, exact over all ranks, in fp32 as it is served."""
        tally = Tally(self.recipe.task, max(1, len(self.data.labels)))
        shares = cut(
            np.arange(len(split)),
            split.samples.lengths,
            self.num_ranks,
            self.token_budget,
            self._cost,
        )
        self.model.eval()
        with torch.inference_mode():
            for micro_batch in shares[self.rank]:
                if micro_batch.weight:
                    inputs = tensors(split.samples, micro_batch.rows, self.pad, self._place)
                    tally.add(self.model(*inputs), self._targets(split, micro_batch))
        self.model.train()
        if self.num_ranks > 1:
            tally.all_reduce(self._place)
        return tally.metrics(self.data.labels)

    def _judge(self, epoch: int) -> Evaluation:
        started, metric = time.perf_counter(), self.recipe.metric
        metrics = self.evaluate(self.data.validation)
        self.progress = self.progress.after(
            self.progress.step, metrics[metric], metric, self.recipe.stopping.patience
        )
        best = self.progress.best_step == self.progress.step
        seconds = time.perf_counter() - started
        return Evaluation(self.progress.step, epoch, metrics, best, seconds)

    def _step(self, step: int, epoch: int, rows: np.ndarray) -> Step:
        started = time.perf_counter()
        train = self.data.train
        lengths = train.samples.lengths
        shares = cut(rows, lengths[rows], self.num_ranks, self.token_budget, self._cost)
        rate = learning_rate(self.recipe, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._accumulate(epoch, rows, shares[self.rank])
        limit = self.recipe.optimizer.max_grad_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        real, computed = padding_share((m for share in shares for m in share if m.weight), lengths)
        return Step(
            step=step + 1,
            epoch=epoch,
            loss=self._sum_over_ranks(loss),
            learning_rate=rate,
            grad_norm=norm.item(),
            samples=len(rows),
            tokens=real,
            computed_tokens=computed,
            micro_batches=sum(len(share) for share in shares),
            seconds=time.perf_counter() - started,
        )

    def _accumulate(self, epoch: int, rows: np.ndarray, share: list[MicroBatch]) -> float:
        """Leave the gradient of the global batch in the parameters; this rank's part of its loss.

        Gradients are exchanged once, with the last micro-batch. The exchange averages over ranks,
        hence the factor num_ranks.
        """
        train, total = self.data.train, torch.zeros((), device=self._place)
        for index, micro_batch in enumerate(share):
            last = index == len(share) - 1
            hold = isinstance(self._parallel, DistributedDataParallel) and not last
            with self._parallel.no_sync() if hold else nullcontext():  # type: ignore[operator]
                keys = torch.from_numpy(sample_keys(self.recipe.seed, epoch, micro_batch.rows))
                inputs = tensors(train.samples, micro_batch.rows, self.pad, self._place)
                with self._precision():
                    logits = self._parallel(*inputs, keys.to(self._place))
                losses = sample_losses(self.recipe.task, logits, self._targets(train, micro_batch))
                loss = losses.sum() * micro_batch.weight
                (loss * self.num_ranks).backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        if self.num_ranks > 1 and isinstance(self.model, TextModel):
            ids = np.unique(train.samples.collate(rows, self.pad)[0])
            self.model.table.average_gradient(torch.from_numpy(ids).long().to(self._place))
        return total.item()

    def _targets(self, split: Split, micro_batch: MicroBatch) -> torch.Tensor:
        return torch.from_numpy(split.targets[micro_batch.rows]).to(self._place)

    def _precision(self) -> Any:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self._place.type, dtype=self._autocast)

    def _sum_over_ranks(self, value: float) -> float:
        if self.num_ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64 if self._place.type == "cpu" else None)
        total = total.to(self._place)
        dist.all_reduce(total)
        return total.item()


def _data_parallel(model: Model) -> DistributedDataParallel:
    """The model with its gradients averaged over ranks, all but that of the word embeddings."""
    if isinstance(model, TextModel):
        name = next(n for n, p in model.named_parameters() if p is model.table.weight)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [name])  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model, forward_sync_buffers=False)
