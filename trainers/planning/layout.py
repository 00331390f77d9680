"""Resolve the layout of a run before it starts: check the recipe's, or choose one for `auto`.

Arithmetic over the recipe, the model's sizes and the cluster. A dry run and the run itself share
it, so what is shown is what happens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from cluster.costmodel.job import TrainingJob
from cluster.costmodel.layout import Layout, check_layout
from cluster.costmodel.layout_search import (
    FREE_MEMORY_SHARE,
    GIB,
    LayoutCandidate,
    LayoutChoice,
    choose_layout,
)
from cluster.costmodel.memory import MemoryBreakdown, memory_by_rank
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.token_budget import fitting_token_budget
from cluster.planning import devices
from cluster.planning.devices import ClusterDevices
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.distributed.device import DEVICES, Device
from trainers.models.config import build_config
from trainers.models.shape import shape_from_config
from trainers.planning.workload import RunLength, make_workload

CANDIDATES_SHOWN = 6  # in the table of a dry run


@dataclass(frozen=True)
class ResolvedLayout:
    """A layout over all ranks, and lines that explain it.

    token_budget: None for the recipe's or the device's. job: what it was chosen or checked for.
    """

    layout: Layout
    token_budget: int | None
    lines: tuple[str, ...]
    job: TrainingJob

    @property
    def tokens_at_once(self) -> int:
        """The tokens of a micro-batch at most, whoever decided."""
        return self.token_budget or self.job.token_budget


def resolve_shape(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, cache: Path
) -> ModelShape:
    """Return the sizes of the recipe's model. Raises ModelError when it cannot be loaded.

    num_features: of a linear model. cache: holds a vocabulary trained on the recipe's own texts.
    """
    if recipe.model.name == "linear":
        return ModelShape.for_linear(num_features, max(1, len(labels)))
    encoder = prepare.load_recipe_encoder(recipe, cache) if recipe.model.name == "random" else None
    return shape_from_config(build_config(recipe, labels, encoder), recipe.task, len(labels))


def resolve_layout(recipe: Recipe, shape: ModelShape, cluster: ClusterSpec) -> ResolvedLayout:
    """Check or choose the layout in which `recipe` trains a model of `shape` on `cluster`.

    A cluster without workers trains in this process: a world of one. Raises LayoutError for a
    layout that cannot run, or when none fits.
    """
    known = devices.devices_of_cluster(cluster)
    job = _build_job(recipe, shape, cluster, known)
    if isinstance(recipe.layout, Layout):
        check_layout(
            recipe.layout,
            shape,
            job.num_devices,
            job.devices_per_node,
            recipe.global_batch_size,
        )
        layout, budget = recipe.layout.resolve_for(job.num_devices), recipe.batch.token_budget
        if job.may_raise_budget:
            budget = fitting_token_budget(_with_windows(job, recipe), layout)
            if budget is not None and layout.pp > 1:  # fewer micro-batches would fill it worse
                budget = min(budget, job.token_budget)
        job = replace(job, token_budget=budget or job.token_budget)
        lines = _explicit_lines(_with_windows(job, recipe), layout)
        return ResolvedLayout(layout, budget, tuple(lines), job)
    whole = _with_windows(job, recipe)
    choice = choose_layout(whole)
    budget = recipe.batch.token_budget
    if choice.token_budget != whole.token_budget:
        budget = choice.token_budget
    lines = _auto_lines(whole, choice, known.description)
    return ResolvedLayout(choice.layout, budget, tuple(lines), job)


def _build_job(
    recipe: Recipe, shape: ModelShape, cluster: ClusterSpec, known: ClusterDevices
) -> TrainingJob:
    """Return the planner's job for this cluster, with the longest samples throughout."""
    length = RunLength(steps=1, lengths=Lengths(recipe.batch.max_length))
    workload = make_workload(recipe.model.name, recipe, shape, length)
    return replace(
        workload.job_on(known.topology, known.constants, known.stack),
        num_devices=max(1, cluster.num_workers),
        device_memory=cluster.device_memory_bytes or known.memory,
        precision=resolve_precision(DEVICES[cluster.device_kind], recipe),
        masked_tokens=max(1, round(workload.masked_tokens)) if workload.masked_tokens else None,
    )


def _with_windows(job: TrainingJob, recipe: Recipe) -> TrainingJob:
    """Return the job with a sample for each window that a text may have, a text's at once."""
    windows = recipe.data.windows
    if windows is None:
        return job
    return replace(
        job,
        global_batch_size=job.global_batch_size * windows.max_windows,
        token_budget=max(job.token_budget, job.max_length * windows.max_windows),
    )


def resolve_precision(device: Device, recipe: Recipe) -> str:
    """Return fp32, bf16 or fp16. On a machine without the device (a dry run) auto means bf16."""
    if recipe.precision != "auto":
        return recipe.precision
    if device.kind == "cuda" and not torch.cuda.is_available():
        return "bf16"
    return {None: "fp32", torch.float16: "fp16"}.get(device.autocast_dtype(), "bf16")


def _explicit_lines(job: TrainingJob, layout: Layout) -> Iterator[str]:
    """Describe the layout of the recipe and its memory on each pipeline rank."""
    memories = memory_by_rank(job.shape, layout, job.training_setup(layout, job.token_budget))
    yield f"layout    {layout}: {layout.world_size} rank(s), as the recipe says"
    yield from _memory_lines(layout, memories)
    most = max(memory.total for memory in memories)
    if job.device_memory is not None and most > job.device_memory * (1 - FREE_MEMORY_SHARE):
        yield (
            f"          WARNING: {most / GIB:.2f} GiB of {job.device_memory / GIB:.2f} GiB, of "
            "which a tenth should stay free; lower batch.token_budget, set layout.recompute, or "
            "raise layout.dp_shard"
        )


def _auto_lines(job: TrainingJob, choice: LayoutChoice, hardware: str) -> Iterator[str]:
    """Describe the chosen layout and why, then the best candidates and the time of their steps."""
    layout = choice.layout
    yield f"layout    auto: {choice.reason}"
    yield from _memory_lines(
        layout, memory_by_rank(job.shape, layout, job.training_setup(layout, choice.token_budget))
    )
    if len(choice.considered) == 1:
        return
    yield f"          {'considered':<56} {'tokens':>9} {'GiB':>8} {'s a step':>9}"
    shown = list(choice.considered[:CANDIDATES_SHOWN])
    if choice.chosen not in shown:
        shown.append(choice.chosen)
    for candidate in shown:
        yield _candidate_line(candidate, candidate is choice.chosen)
    hidden = len(choice.considered) - len(shown)
    more = f"and {hidden} more; " if hidden else ""
    yield f"          {more}longest samples throughout, {hardware}"


def _candidate_line(candidate: LayoutCandidate, chosen: bool) -> str:
    verdict = "chosen" if chosen else "" if candidate.fits else "does not fit"
    return (
        f"          {candidate.layout!s:<56} {candidate.token_budget:>9,} "
        f"{candidate.memory / GIB:>8.2f} {candidate.step.total:>9.3g}   {verdict}"
    ).rstrip()


def _memory_lines(layout: Layout, memories: tuple[MemoryBreakdown, ...]) -> Iterator[str]:
    for rank, memory in enumerate(memories):
        place = f" of pipeline rank {rank}" if layout.pp > 1 else ""
        parts = ", ".join(
            f"{field.name} {getattr(memory, field.name) / GIB:.2f}"
            for field in fields(memory)
            if getattr(memory, field.name) >= 0.005 * GIB
        )
        yield f"memory    at most {memory.total / GIB:.2f} GiB a device{place}: {parts or 'little'}"
