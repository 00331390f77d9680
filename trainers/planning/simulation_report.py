"""What a rehearsal found, for a person: memory and exchanges by pipeline rank, or a refusal."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from transformers import AutoTokenizer

from cluster.costmodel.layout import LayoutError
from cluster.costmodel.layout_search import FREE, GIB
from cluster.costmodel.memory import needs
from cluster.spec import ClusterSpec, Metadata
from trainers.config.recipe import Recipe
from trainers.data.microbatch import Cost
from trainers.data.packages import resolve_model
from trainers.data.tokenizer import TextEncoder
from trainers.distributed.device import DEVICES
from trainers.models.bert import TextModel
from trainers.models.build import shapes_of
from trainers.models.config import config_of, quiet
from trainers.models.shape import shape_of
from trainers.planning.layout import planned
from trainers.planning.simulator import PARTS, Play, Role, regime_of, rehearse

BERT_WORDS = 30522  # pieces in the vocabulary of BERT, where the recipe's is not here


def described(
    recipe: Recipe, cluster: ClusterSpec, vocabulary_size: int | None = None
) -> Iterator[str]:
    """Rehearse `recipe` on `cluster` and say what came of it, line by line.

    vocabulary_size: of a fresh model; default: of its tokenizer if it is on this machine. Raises
    LayoutError for a layout that cannot run, or that does not fit the devices.
    """
    if recipe.model.name == "linear":
        raise LayoutError("a linear model needs no rehearsal: every device holds all of it")
    words, known = _words(recipe, vocabulary_size)
    device = DEVICES[cluster.metadata.accelerator]
    labels = recipe.data.labels or (("no", "yes") if recipe.task != "regression" else ())
    encoder = _Words(words)
    shape = shape_of(config_of(recipe, labels, encoder), recipe.task, len(labels))
    plan = planned(recipe, shape, cluster)
    job, memory = plan.job, plan.job.device_memory
    budget = plan.token_budget or job.token_budget
    cost = Cost(device.overhead_tokens, shape.hidden_size)
    regime = regime_of(recipe, plan.layout, job.regime(plan.layout, budget), budget, cost)

    def sketch() -> TextModel:
        model = shapes_of(recipe, labels, 0, encoder)
        assert isinstance(model, TextModel)
        return model

    size = "unknown memory" if memory is None else f"{memory / GIB:.2f} GiB"
    yield (
        f"rehearsal {cluster.num_workers:,} device(s) of {size}, "
        f"{cluster.metadata.devices_per_node} a node; played on this machine with fake tensors and "
        "fake ranks: nothing is computed, and nothing of it has run on hardware"
    )
    yield (
        f"model     {shape.num_layers} layers, {shape.hidden_size} wide, "
        f"{shape.num_parameters / 1e6:,.1f} M parameters; vocabulary {shape.vocab_size:,}{known}"
    )
    yield plan.lines[0]
    yield (
        f"batches   {regime.num_micro_batches} micro-batch(es) a rank and step of "
        f"{regime.sequences} x {regime.tokens} tokens, all full; {regime.precision}, "
        f"{recipe.optimizer.name}"
    )
    play = Play(recipe, shape, sketch, plan.layout, regime, device.kind)
    roles = []
    yield _heading()
    for role, expected in zip(rehearse(play), needs(shape, plan.layout, regime), strict=True):
        roles.append(role)
        yield _memory(role, expected.total)
    yield from _exchanged(roles)
    fullest = max(roles, key=lambda role: role.peak)
    if memory is not None and fullest.peak > memory * (1 - FREE):
        raise LayoutError(_refusal(recipe, fullest, memory))
    if memory is not None:
        yield f"fits      {fullest.peak / GIB:.2f} of {memory / GIB:.2f} GiB, a tenth to stay free"


def devices_of(
    cluster: ClusterSpec | None, devices: int | None, memory_gib: float | None, per_node: int | None
) -> ClusterSpec:
    """The cluster to rehearse on: what is given, else what `cluster` says, else GPUs in nodes of 8.

    Raises LayoutError for a number of devices that does not fill nodes.
    """
    metadata = cluster.metadata if cluster else Metadata(accelerator="cuda", devices_per_node=8)
    number = devices or (cluster.num_workers if cluster else 1)
    here = min(per_node or max(1, metadata.devices_per_node), number)
    if number % here:
        raise LayoutError(
            f"--devices {number} does not fill nodes of {here}; set --devices to "
            f"{-(-number // here) * here}, or --devices-per-node to a divisor"
        )
    update = {
        "devices_per_node": here,
        "device_memory_gib": memory_gib or metadata.device_memory_gib,
    }
    origin = cluster or ClusterSpec("rehearsal", "none", 1, metadata)
    return replace(origin, num_nodes=number // here, metadata=metadata.model_copy(update=update))


class _Words(TextEncoder):
    """A tokenizer of which only the size is known."""

    def __init__(self, num_tokens: int) -> None:
        self.pad, self.num_tokens = 0, num_tokens


def _words(recipe: Recipe, given: int | None) -> tuple[int, str]:
    """(pieces in the vocabulary of a fresh model, how they are known). Reads nothing from afar."""
    model = recipe.model
    if model.name != "random":
        return BERT_WORDS, ""  # not asked for: the model's own configuration says it
    if given is not None:
        return given, ", as --vocabulary-size says"
    if model.vocabulary_size is not None:
        return model.vocabulary_size, ", the most of model.vocabulary_size"
    name = model.tokenizer or ""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                resolve_model(name), trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError):
        return BERT_WORDS, f": that of BERT, as {name} is not here; --vocabulary-size says another"
    return len(tokenizer), f", that of {Path(name).name}"


def _heading() -> str:
    parts = "".join(f"{part:>14}" for part in PARTS)
    return f"{'GiB, pp rank, layers':<24}{parts}{'peak':>10}{'arithmetic':>12}{'off':>8}"


def _memory(role: Role, expected: float) -> str:
    spans = " ".join(f"{span.start}-{span.stop - 1}" for span in role.layers)
    parts = "".join(f"{role.memory[part] / GIB:>14.3f}" for part in PARTS)
    return (
        f"memory    {role.pp_rank:<4}{spans:<10}{parts}{role.peak / GIB:>10.3f}"
        f"{expected / GIB:>12.3f}{expected / role.peak - 1:>+8.1%}"
    )


def _exchanged(roles: list[Role]) -> Iterator[str]:
    """What each kind of collective moves a step; ranks that do the same share their lines."""
    alike: list[list[Role]] = []
    for role in roles:
        if alike and alike[-1][0].exchanges == role.exchanges:
            alike[-1].append(role)
        else:
            alike.append([role])
    if any(role.exchanges for role in roles):
        yield f"{'a step, pp rank':<20}{'collective':<16}{'over':<14}{'number':>10}{'GiB':>12}"
    for group in alike:
        first, last = group[0].pp_rank, group[-1].pp_rank
        name = f"{first}" if first == last else f"{first}-{last}"
        for (kind, dimension), (number, size) in sorted(group[0].exchanges.items()):
            yield f"exchange  {name:<10}{kind:<16}{dimension:<14}{number:>10,}{size / GIB:>12.3f}"


def _refusal(recipe: Recipe, role: Role, memory: float) -> str:
    """The need, what there is, and what to change, by what takes most."""
    states = sum(role.memory[part] for part in ("parameters", "gradients", "moments"))
    if states > role.peak / 2:
        change = "raise layout.dp_shard, layout.pp or layout.tp"
    else:
        change = "lower batch.token_budget, or set layout.recompute (selective, full)"
    return (
        f"layout: does not fit: a device of pipeline rank {role.pp_rank} needs "
        f"{role.peak / GIB:.2f} GiB ({states / GIB:.2f} for parameters, gradients and moments), of "
        f"{memory / GIB:.2f} GiB of which a tenth stays free; {change}, or give devices of "
        f"{role.peak / (1 - FREE) / GIB:.1f} GiB"
        + ("" if recipe.layout == "auto" else ", or leave layout out: auto finds one that fits")
    )
