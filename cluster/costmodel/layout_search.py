"""Search for the fastest layout that fits the memory of given devices, by the cost model.

A short list is evaluated: data parallelism first (copies, shards in a node, shards over all nodes),
each with as much recomputation as necessary; tensor and pipeline parallelism only where nothing
else fits, as their small operations and waits cost more than formulas say. Serves both a run with
`layout: auto` and `bertha plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.costmodel.job import TrainingJob
from cluster.costmodel.layout import Layout, LayoutError, check_layout
from cluster.costmodel.memory import peak_memory
from cluster.costmodel.model_shape import Recompute
from cluster.costmodel.step_time import StepTime
from cluster.costmodel.token_budget import fitting_token_budget

GIB = 2**30
FREE_MEMORY_SHARE = (
    0.1  # of a device's memory: for the allocator, libraries and what is not counted
)
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")
# Share of a step that each further kind of parallelism must gain: less is within the error of the
# model, and more kinds cost what no formula counts.
COMPLEXITY = 0.05


@dataclass(frozen=True)
class LayoutCandidate:
    """A resolved layout with a token budget.

    memory: bytes on the fullest device. fits: with FREE_MEMORY_SHARE to spare.
    """

    layout: Layout
    token_budget: int
    memory: float
    step: StepTime
    fits: bool

    @property
    def penalized_seconds(self) -> float:
        """Seconds of a step, plus COMPLEXITY for each kind of parallelism beside copies."""
        layout = self.layout
        kinds = (layout.dp_shard > 1) + (layout.tp > 1) + (layout.pp > 1)
        return self.step.total * (1 + COMPLEXITY * kinds)


@dataclass(frozen=True)
class LayoutChoice:
    """The chosen candidate, all candidates in their order, and the reason in words."""

    chosen: LayoutCandidate
    considered: tuple[LayoutCandidate, ...]
    reason: str

    @property
    def layout(self) -> Layout:
        """The chosen layout, resolved."""
        return self.chosen.layout

    @property
    def token_budget(self) -> int:
        """Tokens that a device computes at once."""
        return self.chosen.token_budget


def choose_layout(job: TrainingJob) -> LayoutChoice:
    """Return the fastest layout that fits. Raises LayoutError when none does, with the way out.

    With unknown memory, and for a linear model, every device holds a copy. The token budget follows
    from the memory where the job leaves it open: that changes speed, never the result.
    """
    if job.device_memory is None or job.shape.head == "linear":
        return _replicate_everywhere(job)
    candidates = rank_candidates(job)
    if not candidates:
        _check_on_devices(job, Layout())
        raise LayoutError(
            f"layout: no layout of {job.num_devices} devices suits the model; "
            "give the number of devices another divisor"
        )
    chosen = first_fitting(candidates)
    if chosen is None:
        raise LayoutError(_explain_no_fit(job, candidates))
    return LayoutChoice(chosen, tuple(candidates), _explain_choice(job, chosen, candidates))


def rank_candidates(job: TrainingJob) -> list[LayoutCandidate]:
    """Return the candidates, data-parallel ones first, each kind sorted by speed."""
    ranked: list[LayoutCandidate] = []
    for layouts in (data_parallel_layouts(job), model_parallel_layouts(job)):
        candidates = [each for layout in layouts for each in _evaluate_layout(job, layout)]
        ranked += sorted(candidates, key=lambda c: (c.penalized_seconds, -c.token_budget))
        if any(candidate.fits for candidate in candidates):
            break
    return ranked


def first_fitting(candidates: Iterable[LayoutCandidate]) -> LayoutCandidate | None:
    """Return the first of `rank_candidates` that fits, or None."""
    return next((candidate for candidate in candidates if candidate.fits), None)


def data_parallel_layouts(job: TrainingJob) -> Iterator[Layout]:
    """Yield valid layouts of copies, shards inside a node, and shards over all devices."""
    devices = job.num_devices
    inside = job.devices_per_node if devices % job.devices_per_node == 0 else devices
    for dp_shard in dict.fromkeys((1, min(devices, inside), devices)):
        for recompute in RECOMPUTES:
            layout = Layout(
                dp_replicate=devices // dp_shard, dp_shard=dp_shard, recompute=recompute
            )
            if _is_valid(job, layout):
                yield layout


def model_parallel_layouts(job: TrainingJob) -> Iterator[Layout]:
    """Yield valid layouts of tp inside a node, pp, and shards over the remaining devices."""
    devices = job.num_devices
    for tp in _list_divisors(min(job.devices_per_node, devices)):
        for pp in _list_divisors(devices // tp) if devices % tp == 0 else ():
            if tp * pp == 1:
                continue
            for recompute in RECOMPUTES:
                layout = Layout(
                    dp_replicate=1,
                    dp_shard=devices // tp // pp,
                    pp=pp,
                    tp=tp,
                    sequence_parallel=tp > 1,
                    recompute=recompute,
                )
                if _is_valid(job, layout):
                    yield layout


def _evaluate_layout(job: TrainingJob, layout: Layout) -> Iterator[LayoutCandidate]:
    """Yield the layout with the whole token budget, and the fastest that fits with less of it.

    Budgets are halved down to one longest sample; a pipeline may gain by more micro-batches.
    """
    most = fitting_token_budget(job, layout) if job.may_raise_budget else None
    largest = _make_candidate(job, layout, most or job.token_budget)
    yield largest
    if (largest.fits and layout.pp == 1) or not job.may_lower_budget:
        return
    smaller, budget = [], largest.token_budget // 2
    while budget >= job.max_length:
        smaller.append(_make_candidate(job, layout, budget))
        if smaller[-1].fits and layout.pp == 1:
            break
        budget //= 2
    fitting = [candidate for candidate in smaller if candidate.fits]
    if fitting:
        best = min(fitting, key=lambda c: c.penalized_seconds)
        if not largest.fits or best.penalized_seconds < largest.penalized_seconds:
            yield best
    elif not largest.fits and smaller:
        yield smaller[-1]


def _make_candidate(job: TrainingJob, layout: Layout, budget: int) -> LayoutCandidate:
    assert job.device_memory is not None
    memory = peak_memory(job.shape, layout, job.training_setup(layout, budget))
    fits = memory <= job.device_memory * (1 - FREE_MEMORY_SHARE)
    return LayoutCandidate(layout, budget, memory, job.predict_step(layout, budget), fits)


def _replicate_everywhere(job: TrainingJob) -> LayoutChoice:
    layout = Layout(dp_replicate=job.num_devices)
    _check_on_devices(job, layout)
    memory = peak_memory(job.shape, layout, job.training_setup(layout, job.token_budget))
    reason = (
        "a linear model is only replicated"
        if job.shape.head == "linear"
        else "the memory of a device is unknown (metadata.device_memory_gib), so every device "
        "holds a copy of the model"
    )
    step = job.predict_step(layout, job.token_budget)
    chosen = LayoutCandidate(layout, job.token_budget, memory, step, True)
    return LayoutChoice(chosen, (chosen,), reason)


def _check_on_devices(job: TrainingJob, layout: Layout) -> None:
    check_layout(layout, job.shape, job.num_devices, job.devices_per_node, job.global_batch_size)


def _is_valid(job: TrainingJob, layout: Layout) -> bool:
    try:
        _check_on_devices(job, layout)
    except LayoutError:
        return False
    return True


def _explain_choice(
    job: TrainingJob, chosen: LayoutCandidate, candidates: list[LayoutCandidate]
) -> str:
    """Say that the fastest layout fits, or how many faster ones do not."""
    assert job.device_memory is not None
    need = f"needs {chosen.memory / GIB:.2f} of {job.device_memory / GIB:.2f} GiB a device"
    before = candidates[: candidates.index(chosen)]
    if not before:
        return f"the fastest layout, {chosen.layout}, {need}"
    first = before[0]
    sized = ""
    if chosen.token_budget != job.token_budget:
        sized = f" with micro-batches of {chosen.token_budget:,} tokens"
    return (
        f"{chosen.layout}{sized} {need}; {len(before)} considered before it, {first.layout} "
        f"first, would need {min(c.memory for c in before) / GIB:.2f} GiB or more, and a tenth "
        "stays free"
    )


def _explain_no_fit(job: TrainingJob, candidates: list[LayoutCandidate]) -> str:
    assert job.device_memory is not None
    least = min(candidates, key=lambda c: c.memory)
    out = [
        f"give devices of {least.memory / (1 - FREE_MEMORY_SHARE) / GIB:.2f} GiB "
        "(metadata.device_memory_gib)",
        "use more devices",
    ]
    if least.token_budget >= 2 * job.max_length:
        out.append(f"lower batch.token_budget ({least.token_budget:,})")
    else:
        out.append(f"lower batch.max_length ({job.max_length})")
    return (
        f"layout: no layout of {job.num_devices} devices with {job.device_memory / GIB:.2f} GiB "
        f"each fits; the smallest need is {least.memory / GIB:.2f} GiB by {least.layout} with "
        f"micro-batches of {least.token_budget:,} tokens, and a tenth stays free; {', '.join(out)}"
    )


def _list_divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
