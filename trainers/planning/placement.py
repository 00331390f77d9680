"""Decide whether a run trains in the process that was asked for it, or in workers that Ray starts.

The result is the same, whatever the layout; starting Ray and its workers takes longer than a small
run computes. Nothing is started here.
"""

from dataclasses import dataclass

import numpy as np

from cluster.costmodel.layout import Layout, LayoutError
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import ModelShape
from cluster.local_ray import is_submitted
from cluster.planning.devices import ClusterDevices, devices_of_cluster
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data.microbatch import steps_per_epoch
from trainers.planning.layout import resolve_layout
from trainers.planning.workload import RunLength, make_workload

# From the call of `fit` to the first step, beyond what the same run takes in this process: 22 to 36
# seconds against 13 to 15 of processes without Ray, and 39 where other work was on the machine
# (benchmarks/results/ray-share-*.json, two cores).
RAY_START_SECONDS = 30.0
# What one process with as many threads as there are workers computes, against those workers.
THREADS_SHARE = 0.8
LONGEST_SECONDS = 300.0  # in this process, which nobody restarts if it dies


@dataclass(frozen=True)
class Placement:
    """Where a run trains: the cluster, without workers for this process, and why."""

    cluster: ClusterSpec
    reason: str = ""


def place_run(
    recipe: Recipe,
    shape: ModelShape,
    cluster: ClusterSpec,
    lengths: np.ndarray,
    num_rows: int | None = None,
) -> Placement:
    """Place a run of `recipe` on training rows of `lengths` tokens.

    num_rows: of which those lengths are a sample; default: all of them are there.

    It trains in this process where the cluster is this machine, its file allows it for small runs,
    and workers would save less time than they take to start. Workers are kept for a layout that the
    recipe asks for, for an elastic run, and where the model does not fit this process.
    """
    allowed = cluster.metadata.small_runs_in_process and cluster.num_workers
    is_elsewhere = not cluster.is_this_machine or is_submitted()
    if not allowed or is_elsewhere or cluster.is_elastic or isinstance(recipe.layout, Layout):
        return Placement(cluster)
    rows = num_rows or len(lengths)
    alone, steps = cluster.with_workers(0), _count_steps(recipe, rows)
    try:
        resolve_layout(recipe, shape, alone)
    except LayoutError:
        return Placement(cluster)
    known = devices_of_cluster(alone)
    single = _predict_seconds(recipe, shape, known, lengths, steps)
    has_threads = cluster.device_kind == "cpu" and cluster.num_workers > 1
    seconds = single / (cluster.num_workers * THREADS_SHARE if has_threads else 1)
    gain = seconds - single / cluster.num_workers
    if gain > RAY_START_SECONDS or seconds > LONGEST_SECONDS:
        return Placement(cluster)
    return Placement(
        alone,
        f"training in this process: {rows:,} rows, {steps:,} steps, about "
        f"{max(1.0, seconds):.0f}s {known.description}; starting Ray, {RAY_START_SECONDS:.0f}s, "
        "would cost more than it gains",
    )


def _count_steps(recipe: Recipe, num_rows: int) -> int:
    steps = steps_per_epoch(num_rows, recipe.global_batch_size) * recipe.epochs
    return min(steps, recipe.stopping.max_steps or steps)


def _predict_seconds(
    recipe: Recipe, shape: ModelShape, known: ClusterDevices, lengths: np.ndarray, steps: int
) -> float:
    """Predict the seconds of all steps on one device, by the figures assumed for its kind.

    A CPU counts as one core of it. A linear model computes next to nothing.
    """
    if shape.head == "linear":
        return 0.0
    length = RunLength(steps, Lengths.from_samples(lengths))
    job = make_workload(recipe.model.name, recipe, shape, length).job_on(
        known.topology, known.constants, known.stack
    )
    return steps * job.predict_step(Layout().resolve_for(1), job.token_budget).total
