"""Check at the start of a run that its layout computes what one device computes.

A few truncated samples of the first global batch go through the model on the real layout, with
dropout, and on rank 0 through a copy on one CPU in fp32. Loss, gradient norm and some whole
gradients are compared and written into record.json. The run itself is not changed by it.
"""

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from cluster.costmodel.layout import Layout
from trainers.checkpoint.checkpoint import Checkpoint
from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit, PreparedDataset
from trainers.data.microbatch import epoch_order, global_batch_rows
from trainers.data.ragged import RaggedArray, ragged_from_rows
from trainers.data.tokenizer import Encoder
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import get_world_size, run_on_rank0
from trainers.models.build import build_on_meta, materialize, meta_model
from trainers.parallel.parallelize import parallelize
from trainers.training.linear_probe import set_head
from trainers.training.loop import TrainingError, TrainingLoop

SAMPLES, TOKENS = 4, 64  # of the tiny batch
NUM_COMPARED, MAX_ELEMENTS = 8, 2**20  # gradients compared element by element, and their size
MEMORY_SHARE = 1 / 4  # of the host's memory that weights and gradients of the copy may take
TOLERANCES = {None: 2e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}


@dataclass(frozen=True)
class ParityReport:
    """Relative differences between a layout and one device, and how large they may be.

    gradient: the largest of any element, relative to the largest element compared. judged: the
    differences held against `tolerance`; `gradient` in fp32 only, where rounding cannot explain it.
    """

    layout: dict[str, Any]
    samples: int
    loss: float
    grad_norm: float
    gradient: float
    tolerance: float
    judged: tuple[str, ...]
    seconds: float

    def find_violation(self) -> str | None:
        """Describe the first difference that is too large."""
        for name in self.judged:
            difference = getattr(self, name)
            if not difference <= self.tolerance:  # also true of nan
                return f"{name} differs by {difference:.2e}, allowed {self.tolerance:.0e}"
        return None


def check_parity(
    loop: TrainingLoop, encoder: Encoder, restored: Checkpoint | None
) -> dict[str, Any] | None:
    """Compare the layout of `loop` with one device; return the report as plain values. Collective.

    restored: what the weights were loaded from. Returns None for one CPU, or where the recipe
    turns the check off; the reason where the host has no memory for a copy. Raises TrainingError
    where the differences are too large for rounding.
    """
    is_reference = loop.mesh.device_mesh is None and loop.device.kind == "cpu"
    if is_reference or not loop.recipe.parity:
        return None
    layout = loop.mesh.layout.model_dump(mode="json")
    needed, memory = run_on_rank0(lambda: (_reference_bytes(loop, encoder), _host_memory()))
    if needed > memory * MEMORY_SHARE:
        reason = f"a copy on one device needs {needed / 2**30:.0f} GiB of the host"
        return {
            "layout": layout,
            "skipped": f"{reason}, more than {MEMORY_SHARE:.0%} of its memory",
        }
    report = _run_comparison(loop, encoder, restored, layout)
    violation = report.find_violation()
    if violation is not None:
        raise TrainingError(
            f"layout ({loop.mesh.layout}) does not compute what one device computes: of a tiny "
            f"batch, {violation}; train with another layout, or set parity: false if that is "
            "expected"
        )
    return asdict(report)


def _run_comparison(
    loop: TrainingLoop, encoder: Encoder, restored: Checkpoint | None, layout: dict[str, Any]
) -> ParityReport:
    started, tiny = time.perf_counter(), _tiny_dataset(loop.data, loop.recipe, encoder)
    expected_loss, expected_norm, expected_gradients = run_on_rank0(
        lambda: _compute_reference(loop, tiny, encoder, restored)
    )
    probe = TrainingLoop(loop.recipe, tiny, encoder, loop.parallel, loop.device, loop.token_budget)
    loss, norm = _loss_and_norm(probe)
    gradients = {
        name: _full_gradient(parameter.grad)
        for name, parameter in loop.parallel.named_parameters()
        if name in expected_gradients and parameter.grad is not None
    }
    gradient = _largest_difference(gradients, expected_gradients, loop.device.torch_device())
    probe.optimizer.zero_grad()
    dtype = autocast_dtype(loop.device, loop.recipe.precision)
    judged = ("loss", "grad_norm", "gradient") if dtype is None else ("loss", "grad_norm")
    return ParityReport(
        layout=layout,
        samples=len(tiny.train),
        loss=_relative_difference(loss, expected_loss),
        grad_norm=_relative_difference(norm, expected_norm),
        gradient=gradient,
        tolerance=TOLERANCES[dtype],
        judged=judged,
        seconds=time.perf_counter() - started,
    )


def _compute_reference(
    loop: TrainingLoop, tiny: PreparedDataset, encoder: Encoder, restored: Checkpoint | None
) -> tuple[float, float, dict[str, Tensor]]:
    """Return (loss, gradient norm, some gradients by name) of the same weights on one CPU."""
    recipe = loop.recipe.model_copy(update={"precision": "fp32"})
    model = build_on_meta(recipe, tiny.labels, int(tiny.train.samples.lengths[0]), encoder)
    if loop.head is not None:
        set_head(model, loop.head)
    cpu, mesh = torch.device("cpu"), Mesh(Layout().resolve_for(1), None)
    parallel = parallelize(model, mesh, lambda part: materialize(part, recipe.seed, cpu))
    if restored is not None:
        restored.restore(parallel)
    loss = TrainingLoop(recipe, tiny, encoder, parallel, DEVICES["cpu"]).loss_and_grad()
    gradients = {name: p.grad for name, p in parallel.named_parameters() if p.grad is not None}
    norm = torch.stack(torch._foreach_norm(list(gradients.values()))).norm().item()
    small = [name for name, gradient in gradients.items() if gradient.numel() <= MAX_ELEMENTS]
    chosen = small[:: max(1, len(small) // NUM_COMPARED)]
    return loss, norm, {name: gradients[name] for name in chosen}


def _loss_and_norm(probe: TrainingLoop) -> tuple[float, float]:
    """Return (loss, gradient norm); leave the gradient in the parameters."""
    while True:  # fp16 may need a smaller loss scale
        loss, norm = probe.loss_and_grad(), probe.parallel.clip_gradients(None).item()
        if math.isfinite(norm) or probe.loss_scale is None or probe.loss_scale.is_exhausted:
            return loss, norm
        probe.loss_scale = probe.loss_scale.next_scale(overflowed=True)
        probe.optimizer.zero_grad()


def _tiny_dataset(data: PreparedDataset, recipe: Recipe, encoder: Encoder) -> PreparedDataset:
    """Return `data` with a few truncated samples of the first global batch as training split."""
    order = epoch_order(recipe.seed, 0, len(data.train))
    rows = global_batch_rows(order, 0, recipe.global_batch_size)[:SAMPLES]
    teacher = data.train.teacher
    train = DatasetSplit(
        _shorten_samples(data.train.samples, rows, recipe.model.name != "linear"),
        data.train.targets[rows],
        None if teacher is None else teacher[rows],
    )
    return replace(data, train=train)


def _shorten_samples(samples: RaggedArray, rows: np.ndarray, are_tokens: bool) -> RaggedArray:
    """Return the samples `rows`, of tokens the first few, and of windows the first two."""
    kept: list[list[np.ndarray]] = []
    for row in rows:
        of_row, _ = samples.sequences_of(np.array([row]))
        kept.append([samples.sequences[each][: TOKENS if are_tokens else None] for each in of_row])
        del kept[-1][2:]
    texts = [np.concatenate(each) for each in kept]
    shortened = ragged_from_rows(texts, samples.values.dtype.type)
    if samples.windows is None:
        return shortened
    windows = [np.array(list(map(len, each)), dtype=np.int32) for each in kept]
    return replace(shortened, windows=ragged_from_rows(windows, np.int32))


def _largest_difference(
    gradients: dict[str, Tensor], expected: dict[str, Tensor], device: torch.device
) -> float:
    """Return that of any element on any rank, relative to the largest expected element."""
    largest = max((float(g.abs().max()) for g in expected.values()), default=0.0)
    differences = [(gradients[name] - expected[name]).abs().max() for name in gradients]
    worst = torch.stack([torch.zeros(()), *differences]).max().to(device)
    if get_world_size() > 1:
        dist.all_reduce(worst, dist.ReduceOp.MAX)
    return worst.item() / max(largest, 1e-12)


def _full_gradient(gradient: Tensor) -> Tensor:
    """Return the whole gradient on the CPU. Collective over the ranks that share it."""
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).float().cpu()


def _relative_difference(value: float, expected: float) -> float:
    return abs(value - expected) / max(abs(expected), 1e-12)


def _reference_bytes(loop: TrainingLoop, encoder: Encoder) -> int:
    """Return the size of fp32 weights and gradients of the whole model."""
    data = loop.data
    model = meta_model(loop.recipe, data.labels, int(data.train.samples.lengths[0]), encoder)
    return 2 * 4 * sum(parameter.numel() for parameter in model.parameters())


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
