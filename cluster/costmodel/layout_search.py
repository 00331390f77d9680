"""The layout for a model on given devices: the fastest one that fits, by the cost model, and why.

A short list is weighed: whole layers first (copies, shards in a node, shards over all), each with
as much computed again as need be; layers are divided only where nothing else fits, as small
operations and waiting cost more there than formulas say. A run with `layout: auto` and a plan both
ask here. Knows no torch and no prices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cluster.costmodel.job import Job
from cluster.costmodel.layout import Layout, LayoutError, check
from cluster.costmodel.memory import peak
from cluster.costmodel.model_shape import Recompute
from cluster.costmodel.step_time import Step

GIB = 2**30
FREE = 0.1  # of a device's memory is left to the allocator, libraries and what is not counted
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")


# Of a step, what each further kind of parallelism must gain at least: less is within the error of
# the model, and more kinds cost what no formula counts.
COMPLEXITY = 0.05


@dataclass(frozen=True)
class Candidate:
    """A layout that was weighed. layout: resolved. token_budget: tokens computed at once.

    memory: bytes on the fullest device. step: its seconds.
    """

    layout: Layout
    token_budget: int
    memory: float
    step: Step
    fits: bool

    @property
    def weight(self) -> float:
        """What the fastest has least of."""
        layout = self.layout
        kinds = (layout.dp_shard > 1) + (layout.tp > 1) + (layout.pp > 1)
        return self.step.total * (1 + COMPLEXITY * kinds)


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, all that were weighed, in their order, and the reason in words."""

    chosen: Candidate
    considered: tuple[Candidate, ...]
    reason: str

    @property
    def layout(self) -> Layout:
        """The layout, resolved."""
        return self.chosen.layout

    @property
    def token_budget(self) -> int:
        """Tokens, padding included, a device computes at once."""
        return self.chosen.token_budget


def choose(job: Job) -> Choice:
    """The fastest layout that fits. Raises LayoutError when none does, with the way out.

    With unknown memory, and for a linear model, every device holds a copy. Where only smaller
    micro-batches fit, the token budget is lowered: that changes speed, never the result.
    """
    if job.device_memory is None or job.shape.head == "linear":
        return _copies(job)
    candidates = weighed(job)
    if not candidates:
        check(Layout(), job.shape, job.num_devices, job.devices_per_node, job.global_batch_size)
        raise LayoutError(_no_layout(job))
    chosen = fastest(candidates)
    if chosen is None:
        raise LayoutError(_nothing_fits(job, candidates))
    return Choice(chosen, tuple(candidates), _why(job, chosen, candidates))


def weighed(job: Job) -> list[Candidate]:
    """The candidates, whole layers first, each kind by its speed."""
    found: list[Candidate] = []
    for layouts in (whole(job), divided(job)):
        candidates = [each for layout in layouts for each in _weigh(job, layout)]
        found += sorted(candidates, key=lambda c: (c.weight, -c.token_budget))
        if any(candidate.fits for candidate in candidates):
            break
    return found


def fastest(candidates: Iterable[Candidate]) -> Candidate | None:
    """The first of `weighed` that fits."""
    return next((candidate for candidate in candidates if candidate.fits), None)


def whole(job: Job) -> Iterator[Layout]:
    """Layouts that can run of whole layers: copies, shards inside a node, shards over all."""
    devices = job.num_devices
    inside = job.devices_per_node if devices % job.devices_per_node == 0 else devices
    for dp_shard in dict.fromkeys((1, min(devices, inside), devices)):
        for recompute in RECOMPUTES:
            layout = Layout(
                dp_replicate=devices // dp_shard, dp_shard=dp_shard, recompute=recompute
            )
            if _runs(job, layout):
                yield layout


def divided(job: Job) -> Iterator[Layout]:
    """Layouts that can run of layers divided by tp inside a node and by pp, the rest shards."""
    devices = job.num_devices
    for tp in _divisors(min(job.devices_per_node, devices)):
        for pp in _divisors(devices // tp) if tp <= job.max_tp and devices % tp == 0 else ():
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
                if _runs(job, layout):
                    yield layout


def _weigh(job: Job, layout: Layout) -> Iterator[Candidate]:
    """The layout with the whole token budget, and the fastest that fits with less of it.

    Budgets are halved down to one longest sample; a pipeline may gain by more micro-batches.
    """
    largest = _candidate(job, layout, job.token_budget)
    yield largest
    if (largest.fits and layout.pp == 1) or not job.may_lower_budget:
        return
    smaller, budget = [], job.token_budget // 2
    while budget >= job.max_length:
        smaller.append(_candidate(job, layout, budget))
        if smaller[-1].fits and layout.pp == 1:
            break
        budget //= 2
    fitting = [candidate for candidate in smaller if candidate.fits]
    if fitting:
        best = min(fitting, key=lambda c: c.weight)
        if not largest.fits or best.weight < largest.weight:
            yield best
    elif not largest.fits and smaller:
        yield smaller[-1]


def _candidate(job: Job, layout: Layout, budget: int) -> Candidate:
    assert job.device_memory is not None
    memory = peak(job.shape, layout, job.regime(layout, budget))
    fits = memory <= job.device_memory * (1 - FREE)
    return Candidate(layout, budget, memory, job.step(layout, budget), fits)


def _copies(job: Job) -> Choice:
    layout = Layout(dp_replicate=job.num_devices)
    check(layout, job.shape, job.num_devices, job.devices_per_node, job.global_batch_size)
    memory = peak(job.shape, layout, job.regime(layout, job.token_budget))
    reason = (
        "a linear model is only replicated"
        if job.shape.head == "linear"
        else "the memory of a device is unknown (metadata.device_memory_gib), so every device "
        "holds a copy of the model"
    )
    step = job.step(layout, job.token_budget)
    chosen = Candidate(layout, job.token_budget, memory, step, True)
    return Choice(chosen, (chosen,), reason)


def _runs(job: Job, layout: Layout) -> bool:
    try:
        check(layout, job.shape, job.num_devices, job.devices_per_node, job.global_batch_size)
    except LayoutError:
        return False
    return True


def _why(job: Job, chosen: Candidate, candidates: list[Candidate]) -> str:
    """Plain words: the fastest fits, or how many faster ones do not."""
    assert job.device_memory is not None
    told = f"needs {chosen.memory / GIB:.2f} of {job.device_memory / GIB:.2f} GiB a device"
    before = candidates[: candidates.index(chosen)]
    if not before:
        return f"the fastest layout, {chosen.layout}, {told}"
    first = before[0]
    lowered = ""
    if chosen.token_budget < job.token_budget:
        lowered = f" with micro-batches of {chosen.token_budget:,} tokens"
    return (
        f"{chosen.layout}{lowered} {told}; {len(before)} considered before it, {first.layout} "
        f"first, would need {min(c.memory for c in before) / GIB:.2f} GiB or more, and a tenth "
        "stays free"
    )


def _nothing_fits(job: Job, candidates: list[Candidate]) -> str:
    assert job.device_memory is not None
    least = min(candidates, key=lambda c: c.memory)
    out = [
        f"give devices of {least.memory / (1 - FREE) / GIB:.2f} GiB (metadata.device_memory_gib)",
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


def _no_layout(job: Job) -> str:
    return (
        f"layout: no layout of {job.num_devices} devices suits the model; "
        "give the number of devices another divisor"
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
