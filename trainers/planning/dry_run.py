"""Describe what a run would do, without starting it: data, layout, memory, batch arithmetic.

bertha train imdb.yaml --dry-run
"""

from collections.abc import Iterator

import numpy as np
import torch

from cluster.costmodel.model_shape import ModelShape
from cluster.spec import ClusterSpec
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.microbatch import (
    CutConstraints,
    cut_batch,
    epoch_order,
    global_batch_rows,
    sample_costs,
    steps_per_epoch,
)
from trainers.distributed.device import DEVICES, DTYPES, Device
from trainers.models.heads import plan_head
from trainers.models.pretrained import check_pretrained
from trainers.planning.accelerator import resolve_accelerator
from trainers.planning.layout import (
    ResolvedLayout,
    resolve_layout,
    resolve_precision,
    resolve_shape,
)
from trainers.planning.placement import place_run
from trainers.training.distillation import load_teacher as teacher_of
from trainers.training.losses import check_class_weights

BATCHES_SAMPLED = 20  # global batches that are cut, to show micro-batches and balance


def describe_run(recipe: Recipe, cluster: ClusterSpec) -> Iterator[str]:
    """Yield lines for a person. Raises what the run would raise for bad data or settings."""
    choice = resolve_accelerator(cluster)
    cluster, device = choice.cluster, DEVICES[choice.cluster.device_kind]
    if choice.line:
        yield choice.line
    workers = max(1, cluster.num_workers)
    nodes = cluster.num_nodes
    yield f"cluster   {cluster.name}: {nodes} node(s), {workers} worker(s) on {device.kind}"
    check_pretrained(recipe, cluster.cache_dir)
    sketch = prepare.estimate_dataset(recipe, cluster.cache_dir)
    yield from sketch.report.to_lines()
    check_class_weights(recipe, sketch.labels)
    shape = resolve_shape(recipe, sketch.labels, int(sketch.lengths[0]), cluster.cache_dir)
    chosen = choose_settings(recipe, sketch.num_train, shape.hidden_size)
    recipe = chosen.recipe
    yield from _model_lines(recipe, shape, sketch.labels)
    placement = place_run(recipe, shape, cluster, sketch.lengths, sketch.num_train)
    if placement.reason:
        yield f"place     {placement.reason}"
    plan = resolve_layout(recipe, shape, placement.cluster)
    yield from plan.lines
    hidden_size = shape.hidden_size if shape.num_layers else 0
    yield from _batch_lines(recipe, sketch, plan, device, hidden_size)
    yield from chosen.to_lines()


def _model_lines(recipe: Recipe, shape: ModelShape, labels: tuple[str, ...]) -> Iterator[str]:
    """Describe the model, and the teacher that it is distilled from, if any."""
    kept = recipe.model.layers
    of_which = "" if kept is None else f"; layers {', '.join(map(str, kept))} of it"
    yield f"model     {recipe.model.name}: {_format_sizes(shape)}{of_which}"
    head = plan_head(recipe, labels).line
    if head:
        yield f"head      {head}"
    teacher = teacher_of(recipe, labels)
    if teacher is None or recipe.distillation is None:
        return
    distillation = recipe.distillation
    yield f"teacher   {distillation.teacher}: {_format_sizes(teacher.shape)}"
    warm = "" if recipe.task == "regression" else f", at temperature {distillation.temperature:g}"
    yield f"          its answers are {distillation.weight:.0%} of the loss{warm}"


def _format_sizes(shape: ModelShape) -> str:
    if shape.head == "linear":
        return f"{shape.num_parameters} parameters"
    return (
        f"{shape.num_layers} layers, {shape.hidden_size} wide, "
        f"{shape.num_parameters / 1e6:.1f} M parameters"
    )


def _batch_lines(
    recipe: Recipe,
    sketch: prepare.DatasetEstimate,
    plan: ResolvedLayout,
    device: Device,
    hidden_size: int,
) -> Iterator[str]:
    size, rows = recipe.global_batch_size, sketch.num_train
    steps = steps_per_epoch(rows, size)
    total = min(steps * recipe.epochs, recipe.stopping.max_steps or 10**12)
    budget, ranks = plan.tokens_at_once, plan.layout.dp
    dtype = DTYPES[resolve_precision(device, recipe)] or torch.float32
    yield f"batches   {rows:,} rows / {size} = {steps} steps an epoch, {total} steps in all"
    lengths, length = sketch.lengths, recipe.batch.max_length
    constraints = CutConstraints.for_layout(plan.layout)
    ordered = epoch_order(recipe.seed, 0, len(lengths))
    cuts = [
        cut_batch(batch, lengths[batch], ranks, budget, hidden_size, constraints, length)
        for step in range(min(BATCHES_SAMPLED, len(lengths) // size or 1))
        for batch in [global_batch_rows(ordered, step, size)]
    ]
    count = sum(bool(m.weight) for shares in cuts for share in shares for m in share)
    sequences = sketch.report.windows.get("mean", 1.0)  # of a text
    costs = sample_costs(lengths, hidden_size, length)
    work = [[sum(costs[m.rows].sum() for m in share) for share in shares] for shares in cuts]
    unevenness = sum(max(shares) for shares in work) * ranks / sum(map(sum, work))
    yield (
        f"cut       token budget {budget:,}: {count / len(cuts) / ranks:.1f} micro-batches a rank "
        "and step, without padding "
        f"(to max_length it would be {1 - float(np.mean(lengths)) / sequences / length:.0%})"
    )
    yield f"balance   the busiest rank of a step has {unevenness:.2f}x an even share of the work"
    yield f"precision {str(dtype).removeprefix('torch.')}"
