"""The training loop: global batches in, steps and evaluations out.

`Loop.run()` is a generator of events; whoever consumes them records, saves and reports, so the loop
itself knows no Ray, no files and no clock on the wall. Under a process group every rank runs the
same loop and sees the same events, whatever part of the model it holds.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe
from trainers.data.microbatch import (
    Cost,
    Demands,
    MicroBatch,
    cut,
    global_batch,
    order,
    padding_share,
    steps_per_epoch,
)
from trainers.data.prepare import Data, Split
from trainers.data.tokenizer import Encoder
from trainers.distributed import object_collectives
from trainers.distributed.device import Device, autocast_dtype
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.models.bert import TextModel
from trainers.parallel.parallelize import Parallel
from trainers.parallel.pipeline import Batch, Pipeline
from trainers.training.collator import Feed
from trainers.training.events import Evaluation, Event, Progress, Save, Step
from trainers.training.grad_scaler import Scale, unscale
from trainers.training.losses import training_losses
from trainers.training.metrics import Metrics, Tally
from trainers.training.optimizer import build_optimizer, learning_rate

LOOK_SECONDS = 5.0  # of training between two looks whether a machine is about to leave
AT_ONCE = 64  # micro-batches of an evaluation that are on the device together


class TrainingError(BerthaError):
    """A run that cannot go on; the text says why and the way out."""


class Loop:
    """A run in one process: its part of the model, its optimizer, and the position in the data.

    parallel: on the device already. token_budget: None for what the recipe or the device says.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        encoder: Encoder,
        parallel: Parallel,
        device: Device,
        token_budget: int | None = None,
    ) -> None:
        self.recipe, self.data, self.parallel, self.device = recipe, data, parallel, device
        self.mesh = parallel.mesh
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.optimizer = build_optimizer(parallel, recipe, fused=device.fused)
        self.progress = Progress()
        self._clock = Clock()
        self.steps_per_epoch = steps_per_epoch(len(data.train), recipe.batch.global_size)
        self.total_steps = self.steps_per_epoch * recipe.stopping.epochs
        if recipe.stopping.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.stopping.max_steps)
        self.token_budget = (
            token_budget
            or recipe.batch.token_budget
            or max(device.token_budget, recipe.batch.max_length)
        )
        model = next(iter(parallel.parts.values()))
        hidden = model.config.hidden_size if isinstance(model, TextModel) else 0
        layout, self._place = self.mesh.layout, device.torch_device()
        self._cost = Cost(device.overhead_tokens, hidden)
        self._demands = Demands.of(layout)
        multiple = layout.tp if layout.sequence_parallel else 1
        self._feed = Feed(recipe, encoder, self._place, multiple)
        self._autocast = autocast_dtype(device, recipe.precision)
        parallel.fuse_attention(device.fuses_attention(self._autocast))
        self.scale = Scale() if self._autocast == torch.float16 else None
        self._pipeline = Pipeline(parallel, hidden, self._precision)

    def state(self) -> dict[str, Any]:
        """The position, as plain values."""
        scale = {} if self.scale is None else {"scale": asdict(self.scale)}
        return asdict(self.progress) | scale

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from `state`; weights and moments are restored by the caller."""
        progress = {key: value for key, value in state.items() if key != "scale"}
        self.progress = Progress(**progress)
        if self.scale is not None and "scale" in state:
            self.scale = Scale(**state["scale"])

    def run(self, leaving: Callable[[], bool] | None = None) -> Iterator[Event]:
        """Train to the end, yielding each step, evaluation, and moment to save.

        leaving: whether a machine of the run is about to be taken away; called now and then, by
        all ranks at the same step, and while it is so every look is a moment to save. Raises
        TrainingError when the loss is no longer a number.
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
            if self.scale is not None and self.scale.exhausted:
                raise TrainingError(
                    f"the gradients of step {done.step} overflow fp16 however small the loss is "
                    "scaled; set precision: fp32, or bf16 where the device has it"
                )
            tokens = self.progress.tokens + done.tokens
            self.progress = replace(self.progress, step=step + 1, tokens=tokens)
            last = self.progress.step == self.total_steps
            evaluated = self.progress.step % every == 0 or last
            if evaluated and len(self.data.validation):
                yield self._judge(epoch)
            if evaluated or self.progress.step % save_every == 0:
                yield Save(self.progress.step)
            elif leaving is not None and self._clock.is_due() and leaving():
                yield Save(self.progress.step, leaving=True)

    def evaluate(self, split: Split) -> Metrics:
        """The metrics of all rows of `split`, exact over all ranks, in fp32 as it is served."""
        tally = Tally(self.recipe.task, max(1, len(self.data.labels)))
        shares = self._shares(np.arange(len(split)), split.samples.lengths)
        share = shares[self.mesh.dp_rank]
        deviation = 0.0 if split.teacher is None else float(np.std(split.targets))

        def count(logits: Tensor, batch: Batch) -> None:
            if self.recipe.task == "masked-lm":
                losses, right = token_losses(logits, batch.targets, self.parallel.vocabulary)
                if batch.weight and self.mesh.counts:
                    tally.add_tokens(losses, right)
            elif batch.weight and self.mesh.counts:
                tally.add(logits, batch.targets)
                if batch.teacher is not None:
                    tally.compare(logits, batch.teacher, deviation)

        self.parallel.train(False)
        for start in range(0, len(share), AT_ONCE):
            some = share[start : start + AT_ONCE]
            self._pipeline.predict(self._feed.batches(split, some, epoch=None), count)
        self.parallel.train()
        if self.mesh.devices is not None:
            tally.all_reduce(self._place)
        return tally.metrics(self.data.labels)

    def differentiate(self) -> float:
        """The loss of the first global batch; its gradient is left in the parameters."""
        ordered = order(self.recipe.seed, 0, len(self.data.train))
        rows = global_batch(ordered, 0, self.recipe.batch.global_size)
        shares = self._shares(rows, self.data.train.samples.lengths[rows])
        return self._sum_over_ranks(self._accumulate(0, rows, shares[self.mesh.dp_rank]))

    def _judge(self, epoch: int) -> Evaluation:
        started, metric = time.perf_counter(), self.recipe.metric
        metrics = self.evaluate(self.data.validation)
        self.progress = self.progress.after(
            self.progress.step, metrics[metric], metric, self.recipe.stopping.patience
        )
        best = self.progress.best_step == self.progress.step
        seconds = time.perf_counter() - started
        return Evaluation(self.progress.step, epoch, metrics, best, seconds, self.progress.tokens)

    def _step(self, step: int, epoch: int, rows: np.ndarray) -> Step:
        started = time.perf_counter()
        train = self.data.train
        lengths = train.samples.lengths
        shares = self._shares(rows, lengths[rows])
        rate = learning_rate(self.recipe, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._accumulate(epoch, rows, shares[self.mesh.dp_rank])
        norm = self.parallel.clip(self.recipe.optimizer.max_grad_norm)
        self._update(norm)
        real, computed = padding_share((m for share in shares for m in share if m.weight), lengths)
        return Step(
            step=step + 1,
            epoch=epoch,
            loss=self._together(loss),
            learning_rate=rate,
            grad_norm=norm,
            samples=len(rows),
            tokens=real,
            computed_tokens=computed,
            micro_batches=sum(len(share) for share in shares),
            seconds=time.perf_counter() - started,
        )

    def _update(self, norm: float) -> None:
        """Step along the gradient; one of fp16 that overflowed only changes the loss scale."""
        overflowed = self.scale is not None and not math.isfinite(norm)
        if not overflowed:
            self.optimizer.step()
        if self.scale is not None:
            self.scale = self.scale.after(overflowed)
        self.optimizer.zero_grad()

    def _accumulate(self, epoch: int, rows: np.ndarray, share: list[MicroBatch]) -> float:
        """Leave the gradient of the global batch in the parameters; the loss this rank saw."""
        train, factor = self.data.train, 1.0 if self.scale is None else self.scale.factor
        batches = self._feed.batches(train, share, epoch)
        if self.recipe.task == "masked-lm":
            batches = self._by_token(batches)

        def loss_of(logits: Tensor, batch: Batch) -> Tensor:
            if self.recipe.task == "masked-lm":
                losses, _ = token_losses(logits, batch.targets, self.parallel.vocabulary)
            else:
                losses = training_losses(self.recipe, logits, batch.targets, batch.teacher)
            return losses.sum() * (batch.weight * factor)

        total = self._pipeline.train(batches, loss_of)
        ids = None
        if self.parallel.exchanges_rows:
            ids = torch.from_numpy(np.unique(train.samples.collate(rows, self._feed.pad)[0]))
            ids = ids.long().to(self._place)
        self.parallel.finish(ids)
        if self.scale is not None:
            unscale((parameter for _, parameter in self.parallel.named_parameters()), factor)
        return total.item() / factor if self.mesh.counts else 0.0

    def _by_token(self, batches: list[Batch]) -> list[Batch]:
        """Batches whose weight is that of each masked token: one over those of the global batch."""
        counted = sum(len(batch.targets) for batch in batches if batch.weight)
        copies = self.mesh.layout.world_size // self.mesh.layout.dp
        total = self._sum_over_ranks(float(counted)) / copies
        return [replace(batch, weight=bool(batch.weight) / total) for batch in batches]

    def _shares(self, rows: np.ndarray, lengths: np.ndarray) -> list[list[MicroBatch]]:
        """The micro-batches of each data-parallel rank."""
        return cut(rows, lengths, self.mesh.layout.dp, self.token_budget, self._cost, self._demands)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None or not torch.is_grad_enabled():
            return nullcontext()
        return torch.autocast(self._place.type, dtype=self._autocast)

    def _together(self, loss: float) -> float:
        """The loss that all ranks saw; on the way they agree on the time."""
        seconds = time.perf_counter() - self._clock.started
        loss, seconds = self._sums_over_ranks(loss, seconds)
        self._clock.set(seconds / object_collectives.num_ranks())
        return loss

    def _sum_over_ranks(self, value: float) -> float:
        return self._sums_over_ranks(value)[0]

    def _sums_over_ranks(self, *values: float) -> list[float]:
        if self.mesh.devices is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64 if self._place.type == "cpu" else None)
        total = total.to(self._place)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]


class Clock:
    """Seconds since the start as all ranks agree on them: what one does by it, all do."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._now = self._looked = 0.0

    def set(self, seconds: float) -> None:
        """The mean over the ranks, the same on each."""
        self._now = seconds

    def is_due(self) -> bool:
        """Whether LOOK_SECONDS have passed since this last said so."""
        due = self._now - self._looked >= LOOK_SECONDS
        if due:
            self._looked = self._now
        return due
