"""What a run would do, without starting anything: data, batch arithmetic, memory, workers.

python -m trainers imdb.yaml --dry-run
"""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import BertConfig

from cluster.spec import ClusterSpec
from trainers import data
from trainers.architecture import config_of, num_parameters
from trainers.batching import (
    Cost,
    cut,
    global_batch,
    order,
    padding_share,
    steps_per_epoch,
)
from trainers.device import DEVICES, Device, autocast_dtype
from trainers.recipe import Recipe

TRIED = 20  # global batches cut to show what the cut is like


def describe(recipe: Recipe, cluster: ClusterSpec) -> Iterator[str]:
    """Lines for a person. Raises what the run itself would raise for bad data or settings."""
    device = DEVICES[cluster.metadata.accelerator]
    workers = max(1, cluster.num_workers)
    nodes = cluster.num_nodes
    yield f"cluster   {cluster.name}: {nodes} node(s), {workers} worker(s) on {device.kind}"
    sketch = data.sketch(recipe, cluster.cache)
    yield from sketch.report.lines()
    if recipe.model.name == "linear":
        yield "model     linear"
        yield from _batches(recipe, sketch, workers, device, Cost())
    else:
        config = config_of(recipe, sketch.labels)
        yield _model(recipe, config)
        yield from _batches(
            recipe, sketch, workers, device, Cost(device.overhead_tokens, config.hidden_size)
        )


def _model(recipe: Recipe, config: BertConfig) -> str:
    parameters = num_parameters(config)
    moments = {"sgd": 1 if recipe.optimizer.momentum else 0}.get(recipe.optimizer.name, 2)
    gib = parameters * 4 * (2 + moments) / 2**30
    return (
        f"model     {recipe.model.name}: {config.num_hidden_layers} layers, {config.hidden_size} "
        f"wide, {parameters / 1e6:.1f} M parameters; weights, gradients and "
        f"{recipe.optimizer.name} take {gib:.2f} GiB a worker, activations not counted"
    )


def _batches(
    recipe: Recipe, sketch: data.Sketch, workers: int, device: Device, cost: Cost
) -> Iterator[str]:
    size, rows = recipe.batch.global_size, sketch.num_train
    steps = steps_per_epoch(rows, size)
    total = min(steps * recipe.stopping.epochs, recipe.stopping.max_steps or 10**12)
    budget = recipe.batch.token_budget or max(device.token_budget, recipe.batch.max_length)
    dtype = autocast_dtype(device, recipe.precision) or torch.float32
    yield f"batches   {rows:,} rows / {size} = {steps} steps an epoch, {total} steps in all"
    lengths = sketch.lengths
    ordered = order(recipe.seed, 0, len(lengths))
    cuts = [
        cut(batch, lengths[batch], workers, budget, cost)
        for step in range(min(TRIED, len(lengths) // size or 1))
        for batch in [global_batch(ordered, step, size)]
    ]
    micro_batches = [m for ranks in cuts for share in ranks for m in share if m.weight]
    real, computed = padding_share(micro_batches, lengths)
    work = [[sum(cost.of_samples(lengths[m.rows]).sum() for m in s) for s in r] for r in cuts]
    unevenness = sum(max(shares) for shares in work) * workers / sum(map(sum, work))
    yield (
        f"cut       token budget {budget:,}: {len(micro_batches) / len(cuts) / workers:.1f} "
        f"micro-batches a worker and step, {1 - real / computed:.1%} padding "
        f"(padding to max_length: {1 - float(np.mean(lengths)) / recipe.batch.max_length:.0%})"
    )
    yield f"balance   the busiest worker of a step has {unevenness:.2f}x an even share of the work"
    yield f"precision {str(dtype).removeprefix('torch.')}"
