"""The parity receipt: at the start, proof that this layout computes what one device computes.

A few samples of the first global batch, cut short, go through the model on the real layout, dropout
and all, and on rank 0 through a copy of it on one CPU in fp32. Loss, gradient norm and some whole
gradients are compared and written into record.json. Nothing that trains is changed by it.
"""

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from cluster.costmodel.layout import Layout
from trainers.checkpoint.checkpoint import Checkpoint
from trainers.config.recipe import Recipe
from trainers.data.microbatch import global_batch, order
from trainers.data.prepare import Data, Split
from trainers.data.ragged import ragged
from trainers.data.tokenizer import Encoder
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import on_first
from trainers.models.build import materialize, outline, shapes_of
from trainers.parallel.parallelize import parallelize
from trainers.training.loop import Loop, TrainingError

SAMPLES, TOKENS = 4, 64  # of the tiny batch
COMPARED, LARGEST = 8, 2**20  # gradients compared element by element, and their most elements
SHARE = 1 / 4  # of the host's memory that weights and gradients of the copy may take
TOLERANCES = {None: 2e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class Receipt:
    """Relative differences between a layout and one device, and how large they may be.

    gradient: the largest of an element, in units of the largest element that was compared; judged
    in fp32 alone, where rounding explains none of it.
    """

    layout: dict[str, Any]
    samples: int
    loss: float
    grad_norm: float
    gradient: float
    tolerance: float
    judged: tuple[str, ...]
    seconds: float

    def flaw(self) -> str | None:
        """The first difference that is too large, in words."""
        for name in self.judged:
            difference = getattr(self, name)
            if not difference <= self.tolerance:  # so that a nan is one, too
                return f"{name} differs by {difference:.2e}, allowed {self.tolerance:.0e}"
        return None


def take(loop: Loop, encoder: Encoder, restored: Checkpoint | None) -> dict[str, Any] | None:
    """The receipt of the layout of `loop` as plain values; every rank calls this.

    restored: what the weights were loaded from. None for one rank, or where the recipe wants none;
    the reason where the copy cannot be had. Raises TrainingError where the differences are too
    large for rounding.
    """
    if loop.mesh.devices is None or not loop.recipe.parity:
        return None
    layout = loop.mesh.layout.model_dump(mode="json")
    needed, held = on_first(lambda: (_bytes_of_copy(loop, encoder), _host_memory()))
    if needed > held * SHARE:
        reason = f"a copy on one device needs {needed / 2**30:.0f} GiB of the host"
        return {"layout": layout, "skipped": f"{reason}, more than {SHARE:.0%} of its memory"}
    receipt = _compared(loop, encoder, restored, layout)
    flaw = receipt.flaw()
    if flaw is not None:
        raise TrainingError(
            f"layout ({loop.mesh.layout}) does not compute what one device computes: of a tiny "
            f"batch, {flaw}; train with another layout, or set parity: false if that is expected"
        )
    return asdict(receipt)


def _compared(
    loop: Loop, encoder: Encoder, restored: Checkpoint | None, layout: dict[str, Any]
) -> Receipt:
    started, tiny = time.perf_counter(), _tiny(loop.data, loop.recipe, encoder)
    alone = on_first(lambda: _alone(loop, tiny, encoder, restored))
    probe = Loop(loop.recipe, tiny, encoder, loop.parallel, loop.device, loop.token_budget)
    loss, norm = _differentiated(probe)
    whole = {
        name: _whole(parameter.grad)
        for name, parameter in loop.parallel.named_parameters()
        if name in alone.gradients and parameter.grad is not None
    }
    gradient = _largest_difference(whole, alone.gradients, loop.device.torch_device())
    probe.optimizer.zero_grad()
    dtype = autocast_dtype(loop.device, loop.recipe.precision)
    judged = ("loss", "grad_norm", "gradient") if dtype is None else ("loss", "grad_norm")
    return Receipt(
        layout=layout,
        samples=len(tiny.train),
        loss=_relative(loss, alone.loss),
        grad_norm=_relative(norm, alone.grad_norm),
        gradient=gradient,
        tolerance=TOLERANCES[dtype],
        judged=judged,
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Alone:
    """What one device computed. gradients: some whole ones, by name, on the CPU."""

    loss: float
    grad_norm: float
    gradients: dict[str, Tensor]


def _alone(loop: Loop, tiny: Data, encoder: Encoder, restored: Checkpoint | None) -> _Alone:
    """Rank 0 alone: the same weights on one CPU. Exchanges nothing."""
    recipe = loop.recipe.model_copy(update={"precision": "fp32"})
    model = outline(recipe, tiny.labels, int(tiny.train.samples.lengths[0]), encoder)
    place, mesh = torch.device("cpu"), Mesh(Layout().resolved(1), None)
    parallel = parallelize(model, mesh, lambda part: materialize(part, recipe.seed, place))
    if restored is not None:
        restored.restore(parallel)
    loss = Loop(recipe, tiny, encoder, parallel, DEVICES["cpu"]).differentiate()
    held = {name: p.grad for name, p in parallel.named_parameters() if p.grad is not None}
    norm = torch.stack(torch._foreach_norm(list(held.values()))).norm().item()
    small = [name for name, gradient in held.items() if gradient.numel() <= LARGEST]
    chosen = small[:: max(1, len(small) // COMPARED)]
    return _Alone(loss, norm, {name: held[name] for name in chosen})


def _differentiated(probe: Loop) -> tuple[float, float]:
    """(loss, gradient norm), the gradient left in the parameters; fp16 may need a smaller scale."""
    while True:
        loss, norm = probe.differentiate(), probe.parallel.clip(None)
        if math.isfinite(norm) or probe.scale is None or probe.scale.exhausted:
            return loss, norm
        probe.scale = probe.scale.after(overflowed=True)
        probe.optimizer.zero_grad()


def _tiny(data: Data, recipe: Recipe, encoder: Encoder) -> Data:
    """A few samples of the first global batch, cut short, as all there is to train on."""
    ordered = order(recipe.seed, 0, len(data.train))
    rows = global_batch(ordered, 0, recipe.batch.global_size)[:SAMPLES]
    samples, words = data.train.samples, recipe.model.name != "linear"
    values, mask = samples.collate(rows, encoder.pad)
    texts = [row[kept][: TOKENS if words else None] for row, kept in zip(values, mask, strict=True)]
    taught = data.train.teacher
    train = Split(
        ragged(texts, samples.values.dtype.type),
        data.train.targets[rows],
        None if taught is None else taught[rows],
    )
    return replace(data, train=train)


def _largest_difference(
    found: dict[str, Tensor], expected: dict[str, Tensor], place: torch.device
) -> float:
    """Of any element on any rank, over the largest expected element."""
    largest = max((float(g.abs().max()) for g in expected.values()), default=0.0)
    differences = [(found[name] - expected[name]).abs().max() for name in found]
    worst = torch.stack([torch.zeros(()), *differences]).max().to(place)
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return worst.item() / max(largest, 1e-12)


def _whole(gradient: Tensor) -> Tensor:
    """The whole gradient on the CPU; the ranks that share it all call this."""
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).float().cpu()


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-12)


def _bytes_of_copy(loop: Loop, encoder: Encoder) -> int:
    """fp32 weights and gradients of the whole model."""
    data = loop.data
    model = shapes_of(loop.recipe, data.labels, int(data.train.samples.lengths[0]), encoder)
    return 2 * 4 * sum(parameter.numel() for parameter in model.parameters())


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
