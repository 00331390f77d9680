"""The training loop: global batches in, steps and evaluations out.

`TrainingLoop.run()` is a generator of events; its caller records, saves and reports them. Under a
process group every rank runs the same loop and sees the same events, whatever it holds of the
model.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import BerthaError
from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import PreparedDataset
from trainers.data.microbatch import CutConstraints, MicroBatch, cut_batch, steps_per_epoch
from trainers.data.tokenizer import Encoder
from trainers.distributed.device import Device, autocast_dtype
from trainers.distributed.object_collectives import get_rank, get_world_size
from trainers.distributed.transfer import open_transfer
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.models.bert import TextModel
from trainers.parallel.parallelize import ParallelModel
from trainers.parallel.pipeline import DeviceBatch, Pipeline
from trainers.training.autocast import Autocast
from trainers.training.collator import Collator
from trainers.training.evaluator import Evaluator
from trainers.training.events import (
    EvalEvent,
    Event,
    SaveEvent,
    StepEvent,
    TrainProgress,
    WarningEvent,
)
from trainers.training.grad_scaler import LossScale, unscale_gradients
from trainers.training.launched_step import LaunchedStep, SyncedClock
from trainers.training.linear_probe import Head
from trainers.training.losses import class_weights, training_losses
from trainers.training.metrics import without_tables
from trainers.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from trainers.training.step_batches import StepBatches, StepPreparer
from trainers.training.target_scale import TargetScale


class TrainingError(BerthaError):
    """A run that cannot continue; the message says why and the way out."""


class TrainingLoop:
    """One process of a run: its part of the model, the optimizer, and the position in the data.

    parallel: on its device already. token_budget: None for the recipe's or the device's.
    head: that the model begins with, if it was fitted to frozen features; it is evaluated, and
    saved, before the first step.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: PreparedDataset,
        encoder: Encoder,
        parallel: ParallelModel,
        device: Device,
        token_budget: int | None = None,
        head: Head | None = None,
    ) -> None:
        self.head, self.scale = head, TargetScale.for_recipe(recipe, data)
        self.recipe, self.data, self.parallel, self.device = recipe, data, parallel, device
        self.mesh = parallel.mesh
        self.rank = get_rank()
        self.optimizer = build_optimizer(parallel, recipe, fused=device.fused_optimizers)
        self.progress = TrainProgress()
        self._clock = SyncedClock()
        self.steps_per_epoch = steps_per_epoch(len(data.train), recipe.global_batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        if recipe.stopping.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.stopping.max_steps)
        self.token_budget = (
            token_budget
            or recipe.batch.token_budget
            or device.default_token_budget(recipe.batch.max_length)
        )
        model = next(iter(parallel.stage_modules.values()))
        self._hidden_size = model.config.hidden_size if isinstance(model, TextModel) else 0
        layout, self._device = self.mesh.layout, device.torch_device()
        self._transfer = open_transfer(self._device)
        weights = class_weights(recipe, data)
        self._class_weights = None if weights is None else weights.to(self._device)
        self._finished = 0.0
        self._warnings: list[WarningEvent] = []
        self._cut_constraints = CutConstraints.for_layout(layout)
        multiple = layout.tp if layout.sequence_parallel else 1
        self._collator = Collator(recipe, encoder, self._transfer, multiple, device.row_widths)
        dtype = autocast_dtype(device, recipe.precision)
        parallel.set_fused_attention(device.prefers_fused_attention(dtype))
        self.loss_scale = LossScale() if dtype == torch.float16 else None
        self._preparer = StepPreparer(
            recipe,
            data.train,
            self._collator,
            self._transfer,
            self._split_over_ranks,
            self.mesh.dp_rank,
            parallel.has_row_gradients,
        )
        autocast = Autocast(self._device, dtype, self._transfer.is_immediate)
        self._pipeline = Pipeline(parallel, self._hidden_size, autocast.context)
        self.evaluate = Evaluator(
            recipe,
            data,
            parallel,
            self._collator,
            self._pipeline,
            autocast,
            self._split_over_ranks,
            self.scale,
        ).evaluate

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain values."""
        scale = {} if self.loss_scale is None else {"scale": asdict(self.loss_scale)}
        if self.scale != TargetScale():
            scale["target"] = asdict(self.scale)
        return asdict(self.progress) | scale

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; weights and moments are restored by the caller.

        Raises TrainingError where it is not what `state_dict` of this version returns.
        """
        progress = {key: value for key, value in state.items() if key not in ("scale", "target")}
        if ("target" in state) != (self.scale != TargetScale()):
            raise TrainingError(
                "the checkpoint was written with another data.standardize than "
                f"{self.recipe.data.standardize}, so its numbers are on another scale; set it to "
                f"{str(not self.recipe.data.standardize).lower()}"
            )
        try:
            self.progress = TrainProgress(**progress).with_patience(self.recipe.stopping.patience)
            is_position = self.progress.step >= 0 and self.progress.tokens >= 0
            if self.loss_scale is not None and "scale" in state:
                self.loss_scale = LossScale(**state["scale"])
        except TypeError:
            is_position = False
        if not is_position:
            raise TrainingError(
                f"the checkpoint holds {state}, which is no position in this run; remove that "
                "checkpoint, and --resume goes on from the one before"
            )

    def run(
        self, is_preempted: Callable[[], bool] | None = None, waits: bool = False
    ) -> Iterator[Event]:
        """Train to the end, yielding every step, every evaluation, and when to save.

        On a device that computes beside the host, a step is yielded when the next one has been
        launched; with `waits`, which a timer of single steps needs, when it is done. is_preempted:
        whether a machine of the run is about to be reclaimed; polled by all ranks at the same
        steps, and while it is true each poll yields a SaveEvent. Raises TrainingError when the loss
        is not finite; before that step is evaluated or saved.
        """
        is_unjudged = self.progress.step == 0 and self.progress.best_step is None
        if self.head is not None and is_unjudged and len(self.data.validation):
            yield self._evaluate_validation(0)
            yield SaveEvent(0)
        launched: LaunchedStep | None = None
        while self.progress.step < self.total_steps and not self.progress.stopped:
            before, launched = launched, self._launch_step(self.progress.step)
            yield from self._warnings
            self._warnings.clear()
            if before is not None:
                yield from self._finish_step(before)
            tokens = self.progress.tokens + launched.batches.tokens
            self.progress = replace(self.progress, step=self.progress.step + 1, tokens=tokens)
            evaluates, saves = self._is_due(self.progress.step)
            leaves = not saves and is_preempted is not None and self._clock.is_due()
            if self._transfer.is_immediate or saves or leaves or waits:
                yield from self._finish_step(launched)
                launched = None
            if evaluates and len(self.data.validation):
                yield self._evaluate_validation((self.progress.step - 1) // self.steps_per_epoch)
            if saves:
                yield SaveEvent(self.progress.step)
            elif leaves and is_preempted is not None and is_preempted():
                yield SaveEvent(self.progress.step, preempted=True)

    def averaged_steps(self) -> list[int]:
        """Return the steps of the last checkpoints up to now that `checkpoints.average` is about.

        Those that an interruption added do not count: it changes no result.
        """
        count, step = self.recipe.checkpoints.average or 0, self.progress.step
        due = (each for each in range(step, 0, -1) if self._is_due(each)[1])
        return sorted(itertools.islice(due, count))

    def _is_due(self, step: int) -> tuple[bool, bool]:
        """Return whether `step` is evaluated, and whether it is saved."""
        eval_every = self.recipe.evaluation.every_steps or self.steps_per_epoch
        save_every = self.recipe.checkpoints.every_steps or eval_every
        evaluates = step % eval_every == 0 or step == self.total_steps
        return evaluates, evaluates or step % save_every == 0

    def loss_and_grad(self) -> float:
        """Return the loss of the first global batch; leave its gradient in the parameters."""
        (loss,) = self._sum_over_ranks(self._accumulate_gradients(self._preparer.get(0, True)))
        return loss.item()

    def _evaluate_validation(self, epoch: int) -> EvalEvent:
        started, metric = time.perf_counter(), self.recipe.metric
        metrics = self.evaluate(self.data.validation, is_exact=False)
        self.progress = self.progress.after_evaluation(
            self.progress.step,
            metrics[metric],
            metric,
            self.recipe.stopping.patience,
            metrics["loss"],
        )
        best = self.progress.best_step == self.progress.step
        seconds = time.perf_counter() - started
        logged = without_tables(metrics)
        return EvalEvent(self.progress.step, epoch, logged, best, seconds, self.progress.tokens)

    def _launch_step(self, step: int) -> LaunchedStep:
        """Launch an optimizer step; nothing in it waits for the device."""
        started = time.perf_counter()
        batches = self._preparer.get(step, step + 1 >= self.total_steps)
        rate = learning_rate_at(self.recipe, step, self.total_steps)
        set_learning_rate(self.optimizer, rate)
        loss = self._accumulate_in_memory(batches)
        norm = self.parallel.clip_gradients(
            self.recipe.optimizer.max_grad_norm, self._transfer.is_immediate
        )
        self._optimizer_step(norm)
        seconds = torch.full_like(loss, time.perf_counter() - self._clock.started)
        figures = torch.stack([*self._sum_over_ranks(loss, seconds), norm.to(loss.dtype)])
        return LaunchedStep(batches, rate, self._transfer.begin_read(figures), started)

    def _finish_step(self, launched: LaunchedStep) -> Iterator[StepEvent]:
        """Read and yield a step that was launched. Raises TrainingError if it is not finite."""
        loss, seconds, norm = launched.figures.get()
        self._clock.set_mean(seconds / get_world_size())
        now, batches = time.perf_counter(), launched.batches
        event = StepEvent(
            step=batches.step + 1,
            epoch=batches.epoch,
            loss=loss * self.scale.deviation**2,  # in the user's unit
            learning_rate=launched.learning_rate,
            grad_norm=norm,
            samples=len(batches.rows),
            tokens=batches.tokens,
            computed_tokens=batches.computed_tokens,
            squared_tokens=batches.squared_tokens,
            memory_bytes=self._transfer.peak_memory,
            micro_batches=batches.micro_batches,
            seconds=now - max(launched.started, self._finished),
        )
        self._finished = now
        yield event
        if not math.isfinite(event.loss):
            raise TrainingError(
                f"the loss of step {event.step} is {event.loss}; lower optimizer.learning_rate "
                f"({self.recipe.learning_rate:g}), or lengthen schedule.warmup"
            )
        if self.loss_scale is not None and self.loss_scale.is_exhausted:
            raise TrainingError(
                f"the gradients of step {event.step} overflow fp16 however small the loss is "
                "scaled; set precision: fp32, or bf16 where the device has it"
            )

    def _optimizer_step(self, norm: Tensor) -> None:
        """Step the optimizer; where fp16 gradients overflowed only lower the loss scale."""
        # fp16, of devices that have no bf16, waits for the norm: it decides if there is a step.
        overflowed = self.loss_scale is not None and not math.isfinite(norm.item())
        if not overflowed:
            self.optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale = self.loss_scale.next_scale(overflowed)
        self.optimizer.zero_grad()

    def _accumulate_in_memory(self, prepared: StepBatches) -> Tensor:
        """Accumulate the gradient of a step, in smaller micro-batches where memory is short.

        Raises TrainingError where one sample is too large for the device.
        """
        while True:
            try:
                return self._accumulate_gradients(prepared)
            except torch.OutOfMemoryError:
                # Where ranks work on one step together, the others are in a collective by now: the
                # attempt ends, and the run goes on from its last checkpoint.
                if self.mesh.device_mesh is not None:
                    raise
            # Not above: the exception holds the tensors of the attempt.
            prepared = self._halve_token_budget(prepared)

    def _halve_token_budget(self, prepared: StepBatches) -> StepBatches:
        """Return the step cut anew with half the token budget: the same samples and sum."""
        if len(prepared.rows) == 1 or self.recipe.batch.max_length >= self.token_budget:
            raise TrainingError(
                f"the device has no memory for a micro-batch of {self.token_budget} tokens (step "
                f"{prepared.step + 1}); lower batch.max_length ({self.recipe.batch.max_length})"
                f"{'' if self.recipe.data.windows is None else ', data.windows.max_windows'}, or "
                "set layout.recompute: full"
            )
        self.optimizer.zero_grad()
        self._preparer.forget()
        self._transfer.free_memory()
        before = self.token_budget
        self.token_budget = max(before // 2, self.recipe.batch.max_length)
        text = (
            f"the device has no memory for micro-batches of {before} tokens: from step "
            f"{prepared.step + 1} on they have {self.token_budget}, with the same result; set "
            f"batch.token_budget={self.token_budget} to begin so"
        )
        self._warnings.append(WarningEvent(prepared.step, text))
        return replace(prepared, batches=self._preparer.collate(prepared))

    def _accumulate_gradients(self, prepared: StepBatches) -> Tensor:
        """Leave the gradient of the global batch in the parameters; return this rank's loss."""
        batches = prepared.batches
        factor = 1.0 if self.loss_scale is None else self.loss_scale.factor
        if self.recipe.task == "masked-lm":
            batches = self._weigh_by_token(batches)

        def loss_fn(logits: Tensor, batch: DeviceBatch) -> Tensor:
            if self.recipe.task == "masked-lm":
                losses, _ = token_losses(logits, batch.targets, self.parallel.vocab_shard)
            else:
                targets, teacher = self.scale.standardize(batch.targets), batch.teacher
                if teacher is not None and self.recipe.task == "regression":
                    teacher = self.scale.standardize(teacher)
                losses = training_losses(self.recipe, logits, targets, teacher, self._class_weights)
            if batch.count is not None:
                places = torch.arange(len(losses), device=losses.device)
                losses = losses.masked_fill(places >= batch.count, 0.0)
            return losses.sum() * (batch.weight * factor)

        total = self._pipeline.forward_backward(batches, loss_fn)
        self.parallel.finalize_gradients(prepared.token_ids)
        if self.loss_scale is not None:
            unscale_gradients((p for _, p in self.parallel.named_parameters()), factor)
        total = total.to(self._sum_dtype)
        return total / factor if self.mesh.is_tp_rank0 else torch.zeros_like(total)

    def _weigh_by_token(self, batches: list[DeviceBatch]) -> list[DeviceBatch]:
        """Weigh every masked token by one over those of the global batch."""
        counted = sum(batch.num_targets for batch in batches if batch.weight)
        count = torch.full((), float(counted), dtype=self._sum_dtype, device=self._device)
        copies = self.mesh.layout.world_size // self.mesh.layout.dp
        (total,) = self._sum_over_ranks(count)
        weight = (copies / total).float()
        return [replace(batch, weight=weight if batch.weight else 0.0) for batch in batches]

    def _split_over_ranks(self, rows: np.ndarray, lengths: np.ndarray) -> list[list[MicroBatch]]:
        """Return the micro-batches of each data-parallel rank."""
        how = self.mesh.layout.dp, self.token_budget, self._hidden_size, self._cut_constraints
        return cut_batch(rows, lengths, *how, self.recipe.batch.max_length)

    @property
    def _sum_dtype(self) -> torch.dtype:
        """The dtype of sums over ranks."""
        return torch.float64 if self._device.type in ("cpu", "cuda") else torch.float32

    def _sum_over_ranks(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Sum each of `values` over the ranks, in one all-reduce."""
        if self.mesh.device_mesh is None:
            return values
        total = torch.stack(values)
        dist.all_reduce(total)
        return total.unbind()
