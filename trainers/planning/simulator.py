"""Simulate a training step on any number of devices, in one process and without the devices.

The code of the run itself (model, layout, pipeline, clipping and optimizer) works on fake tensors
in a fake process group, once for each pipeline rank, while a tracker counts memory and collectives.
No data is read: every sequence has max_length tokens. Two steps are simulated, since the first one
creates the optimizer's moments, and only as many micro-batches as it takes to reach the peak.

    bertha train bert-large-pretrain --simulate --devices 1024 --device-memory 80GiB
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import TrainingSetup, micro_batches_in_flight
from cluster.costmodel.model_shape import ModelShape, split_into_stages
from trainers.config.recipe import Recipe
from trainers.data.microbatch import CutConstraints, cut_batch
from trainers.distributed.dtensor import to_local
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.models.bert import TextModel
from trainers.models.packed import PackedTexts
from trainers.parallel.parallelize import ParallelModel
from trainers.parallel.pipeline import DeviceBatch, Pipeline
from trainers.planning.fake import FakeMesh, FakeTensors, cuda_autocast_rules, fake_process_group
from trainers.planning.memory_tracker import UNMARKED, MemoryTracker
from trainers.training.losses import sample_losses
from trainers.training.optimizer import build_optimizer

PARTS = ("parameters", "gradients", "moments", "activations", "temporaries")

# Number and bytes in a step, by kind and mesh dimension.
Collectives = dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True)
class SimulationSpec:
    """What is simulated. build_model: returns a new model of `shape` on the meta device.

    layout: resolved. setup: of the busiest rank. device: the kind whose autocast rules apply.
    """

    recipe: Recipe
    shape: ModelShape
    build_model: Callable[[], TextModel]
    layout: Layout
    setup: TrainingSetup
    device: str = "cuda"


@dataclass(frozen=True)
class RankReport:
    """Memory and communication of a device of one pipeline rank.

    memory: bytes at the peak, by PARTS. num_parameters: of this rank's shards.
    """

    pp_rank: int
    layers: tuple[range, ...]
    num_parameters: int
    memory: dict[str, int]
    collectives: Collectives

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())


def simulated_setup(
    recipe: Recipe, layout: Layout, setup: TrainingSetup, token_budget: int
) -> TrainingSetup:
    """Return `setup` with the micro-batches that the run would cut of full sequences."""
    samples = ceil(recipe.global_batch_size / layout.dp)
    lengths = np.full(samples, recipe.batch.max_length)
    demands = CutConstraints.for_layout(layout)
    (share,) = cut_batch(np.arange(samples), lengths, 1, token_budget, 0, demands)
    largest = max(len(micro_batch.rows) for micro_batch in share)
    return replace(setup, sequences=largest, num_micro_batches=len(share))


def simulate(spec: SimulationSpec) -> Iterator[RankReport]:
    """Simulate every pipeline rank in turn, each by its first device, which holds the most."""
    for pp_rank in range(spec.layout.pp):
        rank = pp_rank * spec.layout.dp * spec.layout.tp
        with fake_process_group(spec.layout.world_size, rank):
            yield _Simulator(spec).run_steps()


class _Simulator:
    """Simulates one rank: its part of the model, and two steps of it."""

    def __init__(self, spec: SimulationSpec) -> None:
        self._spec, self._tensors, self._tracker = spec, FakeTensors(), MemoryTracker()
        mesh = FakeMesh.from_layout(spec.layout, "cpu")
        assert isinstance(mesh, FakeMesh)
        self._mesh = mesh
        # FSDP gathers in the dtype that autocast computes in.
        dtype = None if spec.setup.precision == "fp32" else torch.bfloat16
        self._parallel = self._tensors.parallelize_model(
            spec.build_model(), self._mesh, dtype, self._tracker
        )
        self._autocast = dtype

    def run_steps(self) -> RankReport:
        """Run two steps and report on the second."""
        parameters = [parameter for _, parameter in self._parallel.named_parameters()]
        first, second, total = self._num_micro_batches()
        with self._tensors.fake_creation(self._tracker):
            self._tracker.mark_tensors(parameters, "parameters")
            optimizer = build_optimizer(self._parallel, self._spec.recipe, fused=True)
            _mark_activations(self._parallel, self._tracker)
            pipeline = Pipeline(
                self._parallel, self._spec.shape.hidden_size, self._autocast_context
            )
            self._run_step(pipeline, optimizer, first)
            before = self._collectives_by_dimension()
            self._run_step(pipeline, optimizer, second)
        layout, pp_rank = self._spec.layout, self._mesh.pp_rank
        stages = split_into_stages(self._spec.shape, layout.num_stages)
        return RankReport(
            pp_rank=pp_rank,
            layers=tuple(stages[pp_rank :: layout.pp]),
            num_parameters=sum(to_local(parameter).numel() for parameter in parameters),
            memory=self._memory_at_peak(),
            collectives=_extrapolate(
                before, self._collectives_by_dimension(), first, second, total
            ),
        )

    def _num_micro_batches(self) -> tuple[int, int, int]:
        """Return the micro-batches of the first step, of the second, and of a step of the run.

        The first step must meet every shape, also that of accumulating gradients, which takes two
        micro-batches: where torch sees a shape first, it allocates tensors that later steps do not.
        The second needs as many as a pipeline holds in flight, and one that comes after the first
        backward. The numbers differ, so that collectives per micro-batch can be told from the rest.
        """
        layout, total = self._spec.layout, self._spec.setup.num_micro_batches
        multiple = CutConstraints.for_layout(layout).multiple
        first = min(total, multiple if multiple > 1 else 2)
        peak = max(ceil(micro_batches_in_flight(layout, total, self._mesh.pp_rank)) + 1, first + 1)
        return first, min(total, -(-peak // multiple) * multiple), total

    def _run_step(
        self, pipeline: Pipeline, optimizer: torch.optim.Optimizer, num_micro_batches: int
    ) -> None:
        tracker, recipe = self._tracker, self._spec.recipe
        tracker.begin_step()
        batches = [self._make_batch() for _ in range(num_micro_batches)]
        with nullcontext() if self._spec.device == "cpu" else cuda_autocast_rules():
            pipeline.forward_backward(batches, self._compute_loss)
        # The worst case of sparse embedding gradients: the global batch has every token there is.
        ids = torch.zeros(self._spec.shape.vocab_size, dtype=torch.long)
        self._parallel.finalize_gradients(ids if self._parallel.has_row_gradients else None)
        tracker.mark_rest("gradients")
        self._parallel.clip_gradients(recipe.optimizer.max_grad_norm, is_immediate=False)
        optimizer.step()
        optimizer.zero_grad()
        # What outlives a step and is neither weight nor moment is permanent: DDP buckets, the hash
        # tables of dropout.
        tracker.mark_rest("buffers", but=("parameters", "moments"))
        states = optimizer.state.values()
        tracker.mark_tensors(
            (t for state in states for t in state.values() if isinstance(t, Tensor)), "moments"
        )

    def _make_batch(self) -> DeviceBatch:
        """Make a micro-batch of full sequences of zeros: values change no size."""
        setup, task = self._spec.setup, self._spec.recipe.task
        b, s = setup.sequences, setup.tokens
        reads = None
        if task == "masked-lm":
            masked = setup.micro_batch_shape(self._spec.shape).masked
            reads = targets = torch.zeros(masked, dtype=torch.long)
        elif task == "multi-label":
            targets = torch.zeros(b, self._spec.shape.num_labels)
        else:
            targets = torch.zeros(b, dtype=torch.long if task == "classification" else None)
        return DeviceBatch(
            inputs=torch.zeros(1, b * s, dtype=torch.long),
            packed=PackedTexts.from_lengths(
                [s] * b, reads=reads, keys=torch.zeros(b, dtype=torch.long)
            ),
            targets=targets,
            weight=1.0,
        )

    def _compute_loss(self, logits: Tensor, batch: DeviceBatch) -> Tensor:
        task = self._spec.recipe.task
        if task == "masked-lm":
            losses, _ = token_losses(logits, batch.targets, self._parallel.vocab_shard)
        else:
            losses = sample_losses(task, logits, batch.targets)
        loss = losses.sum() * batch.weight
        self._tracker.mark_rest("activations")
        return loss

    def _autocast_context(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", self._autocast) if self._autocast else nullcontext()

    def _memory_at_peak(self) -> dict[str, int]:
        at_peak = self._tracker.at_peak
        memory = {part: at_peak.get(part, 0) for part in PARTS}
        # Whatever else is alive, such as FSDP's gathered parameters, counts as temporary.
        memory["temporaries"] += sum(n for mark, n in at_peak.items() if mark not in PARTS)
        return memory

    def _collectives_by_dimension(self) -> Collectives:
        totals: Collectives = {}
        for collective, number in self._tracker.collective_counts.items():
            key = collective.kind, self._mesh.name_of_group(collective.ranks)
            count, size = totals.get(key, (0, 0))
            totals[key] = count + number, size + self._tracker.collective_bytes[collective]
        return totals


def _mark_activations(parallel: ParallelModel, tracker: MemoryTracker) -> None:
    """Mark what a forward allocates, and leaves alive, as activations.

    What is unmarked when the next forward begins came of a backward: gradients, except the
    forward's input, an activation that the previous stage has sent.
    """

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        tracker.mark_rest("gradients")
        tracker.mark_tensors(args[:1], "activations")
        tracker.default_mark = "activations"

    def after(*_: object) -> None:
        tracker.default_mark = UNMARKED

    for module in parallel.wrapped_modules.values():
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after)


def _extrapolate(
    fewer: Collectives, more: Collectives, num_fewer: int, num_more: int, num: int
) -> Collectives:
    """Extrapolate to `num` micro-batches: each adds as much as those between the two steps."""
    if num == num_more:
        return more
    further = (num - num_more) / (num_more - num_fewer)
    result = {}
    for key, (number, size) in more.items():
        number_before, size_before = fewer.get(key, (0, 0))
        result[key] = (
            round(number + further * (number - number_before)),
            round(size + further * (size - size_before)),
        )
    return result
