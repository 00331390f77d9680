"""A step of a run on any number of devices, played through in one process without any of them.

The code of the run itself, model, layout, pipeline, clipping and optimizer, works on fake tensors
among fake ranks, once for each pipeline rank; a ledger counts what lives and what is exchanged. No
data is read: every sequence is full. Two steps are played, since the first one makes the moments,
and of many micro-batches only as many as it takes to reach the peak.

    python -m trainers bert-large-pretrain --rehearse --devices 1024 --device-memory 80GiB
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import Regime, in_flight
from cluster.costmodel.model_shape import Shape, stage_layers
from trainers.config.recipe import Recipe
from trainers.data.microbatch import Cost, Demands, cut
from trainers.distributed.dtensor import to_local
from trainers.distributed.vocab_parallel_loss import token_losses
from trainers.models.bert import TextModel
from trainers.parallel.parallelize import Parallel
from trainers.parallel.pipeline import Batch, Pipeline
from trainers.planning.fake import PretendedMesh, Tensors, autocast_of_cuda, rank_of
from trainers.planning.memory_tracker import UNMARKED, Ledger
from trainers.training.losses import sample_losses
from trainers.training.optimizer import build_optimizer

PARTS = ("parameters", "gradients", "moments", "activations", "temporaries")

Sketch = Callable[[], TextModel]


@dataclass(frozen=True)
class Play:
    """What is rehearsed. shape and sketch: of the model, the latter on meta, anew at each call.

    layout: resolved. regime: of the busiest rank. device: whose autocast is meant.
    """

    recipe: Recipe
    shape: Shape
    sketch: Sketch
    layout: Layout
    regime: Regime
    device: str = "cuda"


@dataclass(frozen=True)
class Role:
    """What a device of one pipeline rank did.

    memory: bytes at the peak, by PARTS. num_parameters: those held, parts of tensors counted as
    such. exchanges: (number, bytes) of a step by (kind, mesh dimension).
    """

    pp_rank: int
    layers: tuple[range, ...]
    num_parameters: int
    memory: dict[str, int]
    exchanges: dict[tuple[str, str], tuple[int, int]]

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.memory.values())


def regime_of(
    recipe: Recipe, layout: Layout, regime: Regime, token_budget: int, cost: Cost
) -> Regime:
    """`regime` with the micro-batches that the run would cut, were all sequences full."""
    samples = ceil(recipe.batch.global_size / layout.dp)
    lengths = np.full(samples, recipe.batch.max_length)
    demands = Demands.of(layout)
    (share,) = cut(np.arange(samples), lengths, 1, token_budget, cost, demands)
    largest = max(len(micro_batch.rows) for micro_batch in share)
    return replace(regime, sequences=largest, num_micro_batches=len(share))


def rehearse(play: Play) -> Iterator[Role]:
    """Every pipeline rank in turn, each as its first device, which has the most to hold."""
    for pp_rank in range(play.layout.pp):
        rank = pp_rank * play.layout.dp * play.layout.tp
        with rank_of(play.layout.world_size, rank):
            yield _Player(play).role()


class _Player:
    """One rank: its part of the model, and the steps it takes."""

    def __init__(self, play: Play) -> None:
        self._play, self._tensors, self._ledger = play, Tensors(), Ledger()
        mesh = PretendedMesh.of(play.layout, "cpu")
        assert isinstance(mesh, PretendedMesh)
        self._mesh = mesh
        # FSDP gathers in the dtype that autocast computes in.
        dtype = None if play.regime.precision == "fp32" else torch.bfloat16
        self._parallel = self._tensors.laid_out(play.sketch(), self._mesh, dtype, self._ledger)
        self._autocast = dtype

    def role(self) -> Role:
        """Play the steps, and say what came of them."""
        held = [parameter for _, parameter in self._parallel.named_parameters()]
        warm, most, all_of = self._numbers()
        with self._tensors.active(self._ledger):
            self._ledger.mark(held, "parameters")
            optimizer = build_optimizer(self._parallel, self._play.recipe, fused=True)
            _follow(self._parallel, self._ledger)
            pipeline = Pipeline(self._parallel, self._play.shape.hidden_size, self._precision)
            self._step(pipeline, optimizer, warm)
            first = self._exchanges()
            self._step(pipeline, optimizer, most)
        return Role(
            pp_rank=self._mesh.pp_rank,
            layers=self._layers(),
            num_parameters=sum(to_local(parameter).numel() for parameter in held),
            memory=self._memory(),
            exchanges=_extended(first, self._exchanges(), warm, most, all_of),
        )

    def _numbers(self) -> tuple[int, int, int]:
        """Micro-batches of the first step, of the second, and of a step of the run.

        The first step meets every shape, also of adding gradients up, which takes two: where torch
        sees a shape for the first time it makes tensors that are no part of a step.
        """
        layout, all_of = self._play.layout, self._play.regime.num_micro_batches
        multiple = Demands.of(layout).multiple
        first = min(all_of, multiple if multiple > 1 else 2)
        most = max(ceil(in_flight(layout, all_of, self._mesh.pp_rank)) + 1, first + 1)
        return first, min(all_of, -(-most // multiple) * multiple), all_of

    def _step(
        self, pipeline: Pipeline, optimizer: torch.optim.Optimizer, num_micro_batches: int
    ) -> None:
        ledger, recipe = self._ledger, self._play.recipe
        ledger.begin()
        batches = [self._batch() for _ in range(num_micro_batches)]
        with nullcontext() if self._play.device == "cpu" else autocast_of_cuda():
            pipeline.train(batches, self._loss_of)
        # At worst the tokens of a global batch are all the words there are.
        ids = torch.zeros(self._play.shape.vocab_size, dtype=torch.long)
        self._parallel.finish(ids if self._parallel.exchanges_rows else None)
        ledger.mark_rest("gradients")
        self._parallel.clip(recipe.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        # What lives between steps and is no weight is there for good: buckets, hashes of dropout.
        ledger.mark_rest("buffers", but=("parameters", "moments"))
        states = optimizer.state.values()
        ledger.mark(
            (t for state in states for t in state.values() if isinstance(t, Tensor)), "moments"
        )

    def _batch(self) -> Batch:
        """A micro-batch of full sequences; what they say changes no size."""
        regime, task = self._play.regime, self._play.recipe.task
        b, s = regime.sequences, regime.tokens
        positions = None
        if task == "masked-lm":
            positions = torch.zeros(regime.micro_batch(self._play.shape).masked, dtype=torch.long)
            targets = torch.zeros_like(positions)
        elif task == "multi-label":
            targets = torch.zeros(b, self._play.shape.num_labels)
        else:
            targets = torch.zeros(b, dtype=torch.long if task == "classification" else None)
        return Batch(
            inputs=torch.zeros(b, s, dtype=torch.long),
            mask=None,
            keys=torch.zeros(b, dtype=torch.long),
            positions=positions,
            targets=targets,
            weight=1.0,
        )

    def _loss_of(self, logits: Tensor, batch: Batch) -> Tensor:
        task = self._play.recipe.task
        if task == "masked-lm":
            losses, _ = token_losses(logits, batch.targets, self._parallel.vocabulary)
        else:
            losses = sample_losses(task, logits, batch.targets)
        loss = losses.sum() * batch.weight
        self._ledger.mark_rest("activations")
        return loss

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", self._autocast) if self._autocast else nullcontext()

    def _layers(self) -> tuple[range, ...]:
        layout = self._play.layout
        stages = stage_layers(self._play.shape, layout.num_stages)
        return tuple(stages[self._mesh.pp_rank :: layout.pp])

    def _memory(self) -> dict[str, int]:
        at_peak = self._ledger.at_peak
        memory = {part: at_peak.get(part, 0) for part in PARTS}
        memory["temporaries"] += sum(n for mark, n in at_peak.items() if mark not in PARTS)
        return memory

    def _exchanges(self) -> dict[tuple[str, str], tuple[int, int]]:
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for exchange, number in self._ledger.exchanges.items():
            key = exchange.kind, self._mesh.dimension(exchange.ranks)
            before = found.get(key, (0, 0))
            found[key] = before[0] + number, before[1] + self._ledger.exchanged[exchange]
        return found


def _follow(parallel: Parallel, ledger: Ledger) -> None:
    """Tell the ledger what it sees: what a forward makes, and leaves alive, is kept for backward.

    What else lives when the next one begins came of a backward, but for what was sent to it.
    """

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        ledger.mark_rest("gradients")
        ledger.mark(args[:1], "activations")
        ledger.fresh = "activations"

    def after(*_: object) -> None:
        ledger.fresh = UNMARKED

    for module in parallel.compute.values():
        module.register_forward_pre_hook(before, prepend=True)
        module.register_forward_hook(after)


def _extended(
    fewer: dict[tuple[str, str], tuple[int, int]],
    more: dict[tuple[str, str], tuple[int, int]],
    num_fewer: int,
    num_more: int,
    num: int,
) -> dict[tuple[str, str], tuple[int, int]]:
    """Exchanges of a step of `num` micro-batches: each adds as much as the ones before."""
    if num == num_more:
        return more
    further = (num - num_more) / (num_more - num_fewer)
    return {
        key: (
            round(number + further * (number - fewer.get(key, (0, 0))[0])),
            round(size + further * (size - fewer.get(key, (0, 0))[1])),
        )
        for key, (number, size) in more.items()
    }
