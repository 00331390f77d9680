"""What a run would do, without starting anything: data, layout, memory, batch arithmetic.

python -m trainers imdb.yaml --dry-run
"""

from collections.abc import Iterator

import numpy as np
import torch

from cluster.costmodel.model_shape import Shape
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.microbatch import (
    Cost,
    Demands,
    cut,
    global_batch,
    order,
    padding_share,
    steps_per_epoch,
)
from trainers.distributed.device import DEVICES, Device, autocast_dtype
from trainers.planning.layout import Planned, planned, sizes
from trainers.training.distillation import of as teacher_of

TRIED = 20  # global batches cut to show what the cut is like


def describe(recipe: Recipe, cluster: ClusterSpec) -> Iterator[str]:
    """Lines for a person. Raises what the run itself would raise for bad data or settings."""
    device = DEVICES[cluster.metadata.accelerator]
    workers = max(1, cluster.num_workers)
    nodes = cluster.num_nodes
    yield f"cluster   {cluster.name}: {nodes} node(s), {workers} worker(s) on {device.kind}"
    sketch = prepare.sketch(recipe, cluster.cache)
    yield from sketch.report.lines()
    shape = sizes(recipe, sketch.labels, int(sketch.lengths[0]), cluster.cache)
    yield from _model(recipe, shape, sketch.labels)
    plan = planned(recipe, shape, cluster)
    yield from plan.lines
    cost = Cost(device.overhead_tokens, shape.hidden_size) if shape.num_layers else Cost()
    yield from _batches(recipe, sketch, plan, device, cost)


def _model(recipe: Recipe, shape: Shape, labels: tuple[str, ...]) -> Iterator[str]:
    """What is trained, and where there is a teacher, from what it is distilled."""
    kept = recipe.model.layers
    of_which = "" if kept is None else f"; layers {', '.join(map(str, kept))} of it"
    yield f"model     {recipe.model.name}: {_sizes(shape)}{of_which}"
    teacher = teacher_of(recipe, labels)
    if teacher is None or recipe.distillation is None:
        return
    told = recipe.distillation
    yield f"teacher   {told.teacher}: {_sizes(teacher.shape)}"
    warm = "" if recipe.task == "regression" else f", at temperature {told.temperature:g}"
    yield f"          its answers are {told.weight:.0%} of the loss{warm}"


def _sizes(shape: Shape) -> str:
    if shape.head == "linear":
        return f"{shape.num_parameters} parameters"
    return (
        f"{shape.num_layers} layers, {shape.hidden_size} wide, "
        f"{shape.num_parameters / 1e6:.1f} M parameters"
    )


def _batches(
    recipe: Recipe, sketch: prepare.Sketch, plan: Planned, device: Device, cost: Cost
) -> Iterator[str]:
    size, rows = recipe.batch.global_size, sketch.num_train
    steps = steps_per_epoch(rows, size)
    total = min(steps * recipe.stopping.epochs, recipe.stopping.max_steps or 10**12)
    budget = plan.token_budget or max(device.token_budget, recipe.batch.max_length)
    ranks = plan.layout.dp
    dtype = autocast_dtype(device, recipe.precision) or torch.float32
    yield f"batches   {rows:,} rows / {size} = {steps} steps an epoch, {total} steps in all"
    lengths = sketch.lengths
    ordered = order(recipe.seed, 0, len(lengths))
    cuts = [
        cut(batch, lengths[batch], ranks, budget, cost, Demands.of(plan.layout))
        for step in range(min(TRIED, len(lengths) // size or 1))
        for batch in [global_batch(ordered, step, size)]
    ]
    micro_batches = [m for shares in cuts for share in shares for m in share if m.weight]
    real, computed = padding_share(micro_batches, lengths)
    work = [[sum(cost.of_samples(lengths[m.rows]).sum() for m in s) for s in r] for r in cuts]
    unevenness = sum(max(shares) for shares in work) * ranks / sum(map(sum, work))
    yield (
        f"cut       token budget {budget:,}: {len(micro_batches) / len(cuts) / ranks:.1f} "
        f"micro-batches a rank and step, {1 - real / computed:.1%} padding "
        f"(padding to max_length: {1 - float(np.mean(lengths)) / recipe.batch.max_length:.0%})"
    )
    yield f"balance   the busiest rank of a step has {unevenness:.2f}x an even share of the work"
    yield f"precision {str(dtype).removeprefix('torch.')}"
