"""Degrees of parallelism as a value, and the checks that reject impossible ones.

Ranks are numbered with `pp` outermost, then `dp_replicate`, `dp_shard`, and `tp` innermost, so that
a tensor-parallel group consists of neighbours inside a node. A layout never changes the result.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from cluster.costmodel.model_shape import ModelShape, Recompute
from cluster.errors import BerthaError
from cluster.settings import Settings

DEGREES = ("dp_replicate", "dp_shard", "pp", "tp")


class LayoutError(BerthaError):
    """A layout that cannot run; the text lists every mistake, each with what to change."""


class Layout(Settings):
    """Degrees of each kind of parallelism; their product is the number of ranks."""

    dp_replicate: int | None = Field(
        None, description="copies of the model; default: what the other degrees leave of the ranks"
    )
    dp_shard: int = Field(1, description="ranks that share parameters, gradients and moments")
    pp: int = Field(1, description="pipeline ranks")
    tp: int = Field(1, description="tensor-parallel ranks, neighbours inside a node")
    sequence_parallel: bool = Field(
        False, description="norms and dropouts of a tp group each on a part of the sequence"
    )
    stages_per_rank: int = Field(
        1, description="pipeline stages a rank; above 1 the schedule is interleaved"
    )
    recompute: Recompute = Field(
        "none", description="activations computed again in backward instead of kept"
    )

    def resolve_for(self, world_size: int) -> Layout:
        """Return the layout with dp_replicate filled in, or raise LayoutError."""
        mistakes = list(_degree_mistakes(self, world_size))
        if mistakes:
            raise _layout_error(self, mistakes)
        return self.model_copy(update={"dp_replicate": world_size // self._inner_degree})

    @property
    def world_size(self) -> int:
        """Number of ranks of a resolved layout."""
        return self._num_replicas * self._inner_degree

    @property
    def dp(self) -> int:
        """Number of ranks of a resolved layout that see different samples."""
        return self._num_replicas * self.dp_shard

    @property
    def num_stages(self) -> int:
        """Number of pipeline stages that the layers are cut into."""
        return self.pp * self.stages_per_rank

    @property
    def _inner_degree(self) -> int:
        return self.dp_shard * self.pp * self.tp

    @property
    def _num_replicas(self) -> int:
        assert self.dp_replicate is not None, "a layout is resolved before it is used"
        return self.dp_replicate

    def __str__(self) -> str:
        """Return the degrees other than 1, as in `dp_replicate 2 x tp 2`."""
        degrees = {name: getattr(self, name) for name in DEGREES}
        named = [f"{name} {degree}" for name, degree in degrees.items() if degree not in (None, 1)]
        extras = [
            "sequence_parallel" if self.sequence_parallel else "",
            f"{self.stages_per_rank} stages a rank" if self.stages_per_rank != 1 else "",
            f"recompute {self.recompute}" if self.recompute != "none" else "",
        ]
        text = " x ".join(named) or ("dp_replicate 1" if self.dp_replicate else "dp_replicate auto")
        return ", ".join([text, *filter(None, extras)])


def check_layout(
    layout: Layout,
    shape: ModelShape,
    num_devices: int,
    devices_per_node: int,
    global_batch_size: int,
) -> None:
    """Raise LayoutError if `layout` cannot train `shape`, listing every mistake at once."""
    mistakes = [*_degree_mistakes(layout, num_devices), *_switch_mistakes(layout)]
    if all(degree >= 1 for degree in (layout.tp, layout.pp, layout.dp_shard)):
        mistakes += _model_mistakes(layout, shape)
        mistakes += _node_mistakes(layout, devices_per_node)
        mistakes += _batch_mistakes(layout, num_devices, global_batch_size)
    if mistakes:
        raise _layout_error(layout, mistakes)


def _layout_error(layout: Layout, mistakes: list[str]) -> LayoutError:
    return LayoutError("\n  ".join([f"layout ({layout}):", *dict.fromkeys(mistakes)]))


def _degree_mistakes(layout: Layout, num_devices: int) -> Iterator[str]:
    """Find degrees below 1, or whose product is not the number of devices."""
    counts = {name: getattr(layout, name) for name in (*DEGREES, "stages_per_rank")}
    wrong = {name: count for name, count in counts.items() if count is not None and count < 1}
    for name, count in wrong.items():
        yield f"{name} = {count}: a count of at least 1; 1 turns it off"
    if wrong:
        return
    inner = layout._inner_degree
    if num_devices % inner:
        yield (
            f"dp_shard {layout.dp_shard} x pp {layout.pp} x tp {layout.tp} = {inner} does not "
            f"divide the {num_devices} devices; choose degrees whose product does, or a cluster "
            f"of {-(-num_devices // inner) * inner} devices"
        )
    elif layout.dp_replicate is not None and layout.dp_replicate * inner != num_devices:
        yield (
            f"dp_replicate {layout.dp_replicate} x {inner} = {layout.dp_replicate * inner} ranks, "
            f"but the cluster has {num_devices} devices; set dp_replicate to "
            f"{num_devices // inner}, or leave it out"
        )


def _switch_mistakes(layout: Layout) -> Iterator[str]:
    if layout.sequence_parallel and layout.tp == 1:
        yield "sequence_parallel splits a tp group, and tp is 1; set tp above 1, or remove it"
    if layout.stages_per_rank > 1 and layout.pp == 1:
        yield (
            f"stages_per_rank = {layout.stages_per_rank}: interleaves a pipeline, and pp is 1; "
            "set pp above 1, or stages_per_rank to 1"
        )


def _model_mistakes(layout: Layout, shape: ModelShape) -> Iterator[str]:
    """Find degrees that do not divide the model's sizes."""
    if shape.head == "linear":
        others = [n for n in ("dp_shard", "pp", "tp") if getattr(layout, n) != 1]
        others += ["recompute"] if layout.recompute != "none" else []
        if others:
            yield f"{', '.join(others)}: a linear model is only replicated; remove them"
        return
    tp, stages = layout.tp, layout.num_stages
    for name in ("num_heads", "intermediate_size", "hidden_size"):
        size = getattr(shape, name)
        if size % tp:
            yield f"tp = {tp} does not divide {name} {size}; set tp to {_tp_choices(shape)}"
    if tp > shape.vocab_size:
        yield f"tp = {tp}: more ranks than the {shape.vocab_size} words; lower tp"
    if stages > shape.num_layers:
        yield (
            f"pp {layout.pp} x stages_per_rank {layout.stages_per_rank} = {stages} stages, but the "
            f"model has {shape.num_layers} layers; lower one of them"
        )


def _node_mistakes(layout: Layout, devices_per_node: int) -> Iterator[str]:
    count = max(1, devices_per_node)
    if layout.tp > count:
        yield (
            f"tp = {layout.tp}: leaves the node, which has {count} devices; "
            f"set tp to at most {count}, and use pp or dp_shard across nodes"
        )
    elif count % layout.tp:
        yield (
            f"tp = {layout.tp} does not divide the {count} devices of a node, so that a group "
            f"would straddle two; set tp to a divisor of {count}"
        )


def _batch_mistakes(layout: Layout, num_devices: int, global_batch_size: int) -> Iterator[str]:
    dp = layout.dp_shard * (layout.dp_replicate or num_devices // layout._inner_degree or 1)
    if dp > global_batch_size:
        yield (
            f"{dp} data-parallel ranks (dp_replicate x dp_shard), but batch.global_size is "
            f"{global_batch_size}: some would never get a sample; raise batch.global_size to {dp}, "
            "or use fewer devices or more tp or pp"
        )


def _tp_choices(shape: ModelShape) -> str:
    """List the tensor-parallel degrees that divide the model's sizes."""
    sizes = (shape.num_heads, shape.intermediate_size, shape.hidden_size)
    fit = [n for n in range(1, shape.num_heads + 1) if all(size % n == 0 for size in sizes)]
    return f"one of {', '.join(map(str, fit))}"
