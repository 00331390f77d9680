"""A training run as the planner sees it, and the layout that `layout: auto` would take for it."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.costmodel.constants import CALIBRATED, Constants, Stack, training_stack
from cluster.costmodel.job import TrainingJob
from cluster.costmodel.microbatches import Lengths, default_token_budget
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.step_time import StepWork
from cluster.hardware.types import Topology


@dataclass(frozen=True)
class Workload:
    """A run, independent of hardware; `trainers.planning.workload` makes one from a recipe.

    rows: training rows; None where max_steps alone ends the run. lengths: tokens of rows, cut at
    max_length. masked: tokens of a row that a masked-lm head predicts, else 0. evaluated: rows
    evaluated for each one trained on. assumed: what was not given, in words.
    """

    name: str
    shape: ModelShape
    steps: int
    global_batch: int
    max_length: int
    lengths: Lengths
    token_budget: int | None
    masked_tokens: float
    precision: str
    optimizer: str
    attention_dropout: bool
    eval_ratio: float
    rows: int | None
    assumed: tuple[str, ...]

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a row."""
        return self.lengths.mean

    @property
    def total_tokens(self) -> float:
        """Tokens trained on in the whole run, without padding."""
        return self.steps * self.global_batch * self.mean_tokens

    def job_on(
        self, topology: Topology, constants: Constants = CALIBRATED, stack: Stack | None = None
    ) -> TrainingJob:
        """Return the layout search's input for this run on `topology`.

        stack: by default that of a run on such devices.
        """
        accelerator = topology.accelerator
        auto = self.precision == "auto"
        return TrainingJob(
            shape=self.shape,
            topology=topology,
            num_devices=topology.devices,
            device_memory=accelerator.memory,
            global_batch_size=self.global_batch,
            max_length=self.max_length,
            token_budget=self.token_budget
            or max(default_token_budget(accelerator.kind), self.max_length),
            precision=accelerator.half_precision if auto else self.precision,
            optimizer=self.optimizer,
            attention_dropout=self.attention_dropout,
            masked_tokens=self.masked_tokens or None,
            may_lower_budget=self.token_budget is None,
            may_raise_budget=self.token_budget is None and accelerator.kind == "cuda",
            lengths=self.lengths,
            eval_ratio=self.eval_ratio,
            constants=constants,
            stack=stack or training_stack(accelerator.kind),
        )

    def work_on(self, topology: Topology) -> StepWork:
        """Return what one step computes on `topology` with the default token budget."""
        job = self.job_on(topology)
        return job.step_work(job.token_budget)
