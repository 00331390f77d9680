"""The layout of a run before it starts: checked if the recipe gives one, else chosen.

Pure arithmetic over the recipe, the model's sizes and the cluster; both a dry run and the run
itself ask here, so what is shown is what happens. Starts nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from cluster.costmodel.job import Job
from cluster.costmodel.layout import Layout, LayoutError, check
from cluster.costmodel.layout_search import FREE, GIB, Candidate, Choice, choose
from cluster.costmodel.memory import Memory, needs, optimizer_of
from cluster.costmodel.model_shape import Shape
from cluster.planning import devices
from cluster.planning.devices import Devices
from cluster.spec import ClusterSpec
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.distributed.device import DEVICES, Device
from trainers.models.config import config_of
from trainers.models.shape import shape_of

SHOWN = 6  # candidates of a table


@dataclass(frozen=True)
class Planned:
    """A resolved layout, the token budget (None: the recipe's or the device's), and the table.

    job: what it was chosen or checked for.
    """

    layout: Layout
    token_budget: int | None
    lines: tuple[str, ...]
    job: Job


def sizes(recipe: Recipe, labels: tuple[str, ...], num_features: int, cache: Path) -> Shape:
    """The sizes of the recipe's model. Raises ModelError when it cannot be had.

    num_features: of a linear model. cache: where a vocabulary of the recipe's own is kept.
    """
    if recipe.model.name == "linear":
        return Shape.linear(num_features, max(1, len(labels)))
    encoder = prepare.encoder_of(recipe, cache) if recipe.model.name == "random" else None
    return shape_of(config_of(recipe, labels, encoder), recipe.task, len(labels))


def planned(recipe: Recipe, shape: Shape, cluster: ClusterSpec, max_tp: int = 10**9) -> Planned:
    """The layout that `recipe` trains `shape` in on `cluster`, and lines that show it.

    max_tp: 1 for a family whose layers cannot be divided. A cluster without workers trains in this
    process: a world of one. Raises LayoutError for a layout that cannot run, or when none fits.
    """
    known = devices.of(cluster)
    job = _job(recipe, shape, cluster, known, max_tp)
    if isinstance(recipe.layout, Layout):
        check(
            recipe.layout,
            shape,
            job.num_devices,
            job.devices_per_node,
            recipe.batch.global_size,
        )
        if recipe.layout.tp > max_tp:
            raise LayoutError(
                f"layout ({recipe.layout}):\n  tp = {recipe.layout.tp}: the layers of "
                f"{recipe.model.name} cannot be divided; set tp to {max_tp}, and use dp_shard or pp"
            )
        layout = recipe.layout.resolved(job.num_devices)
        return Planned(layout, recipe.batch.token_budget, tuple(_explicit(job, layout)), job)
    choice = choose(job)
    budget = recipe.batch.token_budget
    if choice.token_budget != job.token_budget:
        budget = choice.token_budget
    return Planned(choice.layout, budget, tuple(_automatic(job, choice, known.told)), job)


def _job(recipe: Recipe, shape: Shape, cluster: ClusterSpec, known: Devices, max_tp: int) -> Job:
    """What arithmetic must know of a run."""
    device = DEVICES[cluster.metadata.accelerator]
    share, length = recipe.masking.share, recipe.batch.max_length
    return Job(
        shape=shape,
        place=known.place,
        num_devices=max(1, cluster.num_workers),
        device_memory=cluster.device_memory or known.memory,
        global_batch_size=recipe.batch.global_size,
        max_length=length,
        token_budget=recipe.batch.token_budget or max(device.token_budget, length),
        precision=_precision(device, recipe),
        optimizer=optimizer_of(recipe.optimizer.name, recipe.optimizer.momentum),
        attention_dropout=recipe.model.attention_dropout > 0,
        masked=max(1, round(share * length)) if recipe.task == "masked-lm" else None,
        max_tp=max_tp,
        may_lower_budget=recipe.batch.token_budget is None,
        constants=known.constants,
        stack=known.stack,
    )


def _precision(device: Device, recipe: Recipe) -> str:
    """fp32, bf16 or fp16. Where a dry run stands on a machine without the device, auto is bf16."""
    if recipe.precision != "auto":
        return recipe.precision
    if device.kind == "cuda" and not torch.cuda.is_available():
        return "bf16"
    return {None: "fp32", torch.float16: "fp16"}.get(device.autocast_dtype(), "bf16")


def _explicit(job: Job, layout: Layout) -> Iterator[str]:
    """The layout of the recipe and what it needs on each pipeline rank."""
    memories = needs(job.shape, layout, job.regime(layout, job.token_budget))
    yield f"layout    {layout}: {layout.world_size} rank(s), as the recipe says"
    yield from _parts(layout, memories)
    most = max(memory.total for memory in memories)
    if job.device_memory is not None and most > job.device_memory * (1 - FREE):
        yield (
            f"          WARNING: {most / GIB:.2f} GiB of {job.device_memory / GIB:.2f} GiB, of "
            "which a tenth should stay free; lower batch.token_budget, set layout.recompute, or "
            "raise layout.dp_shard"
        )


def _automatic(job: Job, choice: Choice, told: str) -> Iterator[str]:
    """The chosen layout and why, then the first of those considered and how long a step takes."""
    layout = choice.layout
    yield f"layout    auto: {choice.reason}"
    yield from _parts(layout, needs(job.shape, layout, job.regime(layout, choice.token_budget)))
    if len(choice.considered) == 1:
        return
    yield f"          {'considered':<56} {'tokens':>9} {'GiB':>8} {'s a step':>9}"
    shown = list(choice.considered[:SHOWN])
    if choice.chosen not in shown:
        shown.append(choice.chosen)
    for candidate in shown:
        yield _row(candidate, candidate is choice.chosen)
    hidden = len(choice.considered) - len(shown)
    more = f"and {hidden} more; " if hidden else ""
    yield f"          {more}longest samples throughout, {told}"


def _row(candidate: Candidate, chosen: bool) -> str:
    verdict = "chosen" if chosen else "" if candidate.fits else "does not fit"
    return (
        f"          {candidate.layout!s:<56} {candidate.token_budget:>9,} "
        f"{candidate.memory / GIB:>8.2f} {candidate.step.total:>9.3g}   {verdict}"
    ).rstrip()


def _parts(layout: Layout, memories: tuple[Memory, ...]) -> Iterator[str]:
    for rank, memory in enumerate(memories):
        place = f" of pipeline rank {rank}" if layout.pp > 1 else ""
        parts = ", ".join(
            f"{field.name} {getattr(memory, field.name) / GIB:.2f}"
            for field in fields(memory)
            if getattr(memory, field.name) >= 0.005 * GIB
        )
        yield f"memory    at most {memory.total / GIB:.2f} GiB a device{place}: {parts or 'little'}"
