"""Report a simulation: memory and collectives by pipeline rank, or that it does not fit."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from transformers import AutoTokenizer

from cluster.costmodel.layout import LayoutError
from cluster.costmodel.layout_search import FREE_MEMORY_SHARE, GIB
from cluster.costmodel.memory import memory_by_rank
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.data.packages import resolve_model
from trainers.distributed.device import DEVICES
from trainers.models.bert import TextModel
from trainers.models.build import meta_model
from trainers.models.config import build_config, quiet_transformers
from trainers.models.shape import shape_from_config
from trainers.planning.fake import FakeTokenizer
from trainers.planning.layout import resolve_layout
from trainers.planning.simulator import (
    PARTS,
    RankReport,
    SimulationSpec,
    simulate,
    simulated_setup,
)

BERT_VOCABULARY_SIZE = 30522  # pieces in the vocabulary of BERT, where the recipe's is not here


def simulation_lines(
    recipe: Recipe, cluster: ClusterSpec, vocabulary_size: int | None = None
) -> Iterator[str]:
    """Simulate `recipe` on `cluster` and report line by line.

    vocabulary_size: of a fresh model; default: of its tokenizer if it is on this machine. Raises
    LayoutError for a layout that cannot run, or that does not fit the devices.
    """
    if recipe.model.name == "linear":
        raise LayoutError("a linear model needs no simulation: every device holds all of it")
    num_tokens, origin = _resolve_vocabulary_size(recipe, vocabulary_size)
    device = DEVICES[cluster.device_kind]
    labels = recipe.data.labels or (("no", "yes") if recipe.task != "regression" else ())
    encoder = FakeTokenizer(num_tokens)
    shape = shape_from_config(build_config(recipe, labels, encoder), recipe.task, len(labels))
    recipe = choose_settings(recipe, None, shape.hidden_size).recipe
    plan = resolve_layout(recipe, shape, cluster)
    job, memory = plan.job, plan.job.device_memory
    budget = plan.tokens_at_once
    setup = simulated_setup(recipe, plan.layout, job.training_setup(plan.layout, budget), budget)

    def build_model() -> TextModel:
        model = meta_model(recipe, labels, 0, encoder)
        assert isinstance(model, TextModel)
        return model

    size = "unknown memory" if memory is None else f"{memory / GIB:.2f} GiB"
    yield (
        f"simulated {cluster.num_workers:,} device(s) of {size}, "
        f"{cluster.metadata.devices_per_node} a node; on this machine, with fake tensors and fake "
        "ranks: nothing is computed, and nothing of it has run on hardware"
    )
    yield (
        f"model     {shape.num_layers} layers, {shape.hidden_size} wide, "
        f"{shape.num_parameters / 1e6:,.1f} M parameters; vocabulary {shape.vocab_size:,}{origin}"
    )
    yield plan.lines[0]
    yield (
        f"batches   {setup.num_micro_batches} micro-batch(es) a rank and step of "
        f"{setup.sequences} x {setup.tokens} tokens, all full; {setup.precision}, "
        f"{recipe.optimizer.name}"
    )
    spec = SimulationSpec(recipe, shape, build_model, plan.layout, setup, device.kind)
    ranks = []
    yield _memory_heading()
    estimates = memory_by_rank(shape, plan.layout, setup)
    for rank, estimate in zip(simulate(spec), estimates, strict=True):
        ranks.append(rank)
        yield _memory_line(rank, estimate.total)
    yield from _collective_lines(ranks)
    fullest = max(ranks, key=lambda rank: rank.peak)
    if memory is not None and fullest.peak > memory * (1 - FREE_MEMORY_SHARE):
        raise LayoutError(_does_not_fit_message(recipe, fullest, memory))
    if memory is not None:
        yield f"fits      {fullest.peak / GIB:.2f} of {memory / GIB:.2f} GiB, a tenth to stay free"


def simulated_cluster(
    cluster: ClusterSpec | None, devices: int | None, memory_gib: float | None, per_node: int | None
) -> ClusterSpec:
    """Return the cluster to simulate: what is given, else as `cluster`, else GPUs in nodes of 8.

    Raises LayoutError for a number of devices that does not fill nodes.
    """
    metadata = (
        cluster.metadata if cluster else ClusterMetadata(accelerator="cuda", devices_per_node=8)
    )
    number = devices or (cluster.num_workers if cluster else 1)
    node_size = min(per_node or max(1, metadata.devices_per_node), number)
    if number % node_size:
        raise LayoutError(
            f"--devices {number} does not fill nodes of {node_size}; set --devices to "
            f"{-(-number // node_size) * node_size}, or --devices-per-node to a divisor"
        )
    update = {
        "devices_per_node": node_size,
        "device_memory_gib": memory_gib or metadata.device_memory_gib,
    }
    origin = cluster or ClusterSpec("simulated", "none", 1, metadata)
    return replace(
        origin, num_nodes=number // node_size, metadata=metadata.model_copy(update=update)
    )


def _resolve_vocabulary_size(recipe: Recipe, given: int | None) -> tuple[int, str]:
    """Return the vocabulary size of a fresh model, and where it is from. Downloads nothing."""
    model = recipe.model
    if model.name != "random":
        return BERT_VOCABULARY_SIZE, ""  # not asked for: the model's own configuration says it
    if given is not None:
        return given, ", as --vocabulary-size says"
    if model.vocabulary_size is not None:
        return model.vocabulary_size, ", the most of model.vocabulary_size"
    name = model.tokenizer or ""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                resolve_model(name), trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError):
        return (
            BERT_VOCABULARY_SIZE,
            f": that of BERT, as {name} is not here; --vocabulary-size says another",
        )
    return len(tokenizer), f", that of {Path(name).name}"


def _memory_heading() -> str:
    parts = "".join(f"{part:>14}" for part in PARTS)
    return f"{'GiB, pp rank, layers':<24}{parts}{'peak':>10}{'arithmetic':>12}{'off':>8}"


def _memory_line(rank: RankReport, expected: float) -> str:
    spans = " ".join(f"{span.start}-{span.stop - 1}" for span in rank.layers)
    parts = "".join(f"{rank.memory[part] / GIB:>14.3f}" for part in PARTS)
    return (
        f"memory    {rank.pp_rank:<4}{spans:<10}{parts}{rank.peak / GIB:>10.3f}"
        f"{expected / GIB:>12.3f}{expected / rank.peak - 1:>+8.1%}"
    )


def _collective_lines(ranks: list[RankReport]) -> Iterator[str]:
    """Yield what each kind of collective moves in a step; ranks with equal figures share lines."""
    if any(rank.collectives for rank in ranks):
        yield f"{'a step, pp rank':<20}{'collective':<16}{'over':<14}{'number':>10}{'GiB':>12}"
    for collectives, group in groupby(ranks, lambda rank: rank.collectives):
        first, *others = (rank.pp_rank for rank in group)
        name = f"{first}-{others[-1]}" if others else f"{first}"
        for (kind, dimension), (number, size) in sorted(collectives.items()):
            yield f"exchange  {name:<10}{kind:<16}{dimension:<14}{number:>10,}{size / GIB:>12.3f}"


def _does_not_fit_message(recipe: Recipe, rank: RankReport, memory: float) -> str:
    """Say what is needed, what there is, and what to change, by what takes most."""
    states = sum(rank.memory[part] for part in ("parameters", "gradients", "moments"))
    if states > rank.peak / 2:
        change = "raise layout.dp_shard, layout.pp or layout.tp"
    else:
        change = "lower batch.token_budget, or set layout.recompute (selective, full)"
    return (
        f"layout: does not fit: a device of pipeline rank {rank.pp_rank} needs "
        f"{rank.peak / GIB:.2f} GiB ({states / GIB:.2f} for parameters, gradients and moments), of "
        f"{memory / GIB:.2f} GiB of which a tenth stays free; {change}, or give devices of "
        f"{rank.peak / (1 - FREE_MEMORY_SHARE) / GIB:.1f} GiB"
        + ("" if recipe.layout == "auto" else ", or leave layout out: auto finds one that fits")
    )
