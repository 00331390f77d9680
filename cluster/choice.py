"""The layout for a model on given devices: the cheapest one that fits, and why.

Every layout of a small grid is weighed by the extra time it costs over computing alone, and by the
memory it needs. Knows no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.job import Job
from cluster.layout import Layout, LayoutError, check
from cluster.memory import peak
from cluster.overhead import cost
from cluster.workload import Recompute

GIB = 2**30
FREE = 0.1  # of a device's memory is left to the allocator, libraries and what is not counted
RECOMPUTES: tuple[Recompute, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Candidate:
    """A layout that was weighed. layout: resolved. token_budget: tokens computed at once.

    memory: bytes on the fullest device. cost: extra time, as a share of computing alone.
    """

    layout: Layout
    token_budget: int
    memory: float
    cost: float
    fits: bool


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, all that were weighed, cheapest first, and the reason in words."""

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
    """The cheapest layout that fits. Raises LayoutError when none does, with the way out.

    Layers are divided, by tp or pp, only where no layout of whole layers fits: small operations and
    waiting cost more there than formulas say.

    With unknown memory, and for a linear model, every device holds a copy. Where only smaller
    micro-batches fit, the token budget is lowered: that changes speed, never the result.
    """
    if job.device_memory is None or job.shape.head == "linear":
        return _copies(job)
    candidates: list[Candidate] = []
    for layout in layouts(job):
        candidates.extend(_weigh(job, layout))
    if not candidates:
        check(Layout(), job.shape, job.num_devices, job.devices_per_node, job.global_batch_size)
        raise LayoutError(_no_layout(job))
    candidates.sort(key=lambda c: (_divided(c.layout), c.cost, -c.token_budget))
    fitting = [candidate for candidate in candidates if candidate.fits]
    if not fitting:
        raise LayoutError(_nothing_fits(job, candidates))
    chosen = fitting[0]
    return Choice(chosen, tuple(candidates), _why(job, chosen, candidates))


def layouts(job: Job) -> Iterator[Layout]:
    """Every layout of the grid that can run, resolved: degrees that divide, recompute each way."""
    for tp in _divisors(min(job.devices_per_node, job.num_devices)):
        for pp in _divisors(job.num_devices // tp):
            for dp_shard in _divisors(job.num_devices // tp // pp):
                for recompute, split in itertools.product(
                    RECOMPUTES, (False, True)[: 1 + (tp > 1)]
                ):
                    layout = Layout(
                        dp_replicate=job.num_devices // (tp * pp * dp_shard),
                        dp_shard=dp_shard,
                        pp=pp,
                        tp=tp,
                        sequence_parallel=split,
                        recompute=recompute,
                    )
                    if tp <= job.max_tp and _runs(job, layout):
                        yield layout


def _weigh(job: Job, layout: Layout) -> Iterator[Candidate]:
    """The layout with the whole token budget, and the cheapest that fits with less of it.

    Budgets are halved down to one longest sample; a pipeline may gain by more micro-batches.
    """
    budgets = [job.token_budget]
    while job.may_lower_budget and budgets[-1] // 2 >= job.max_length:
        budgets.append(budgets[-1] // 2)
    candidates = [_candidate(job, layout, budget) for budget in budgets]
    yield candidates[0]
    smaller = [candidate for candidate in candidates[1:] if candidate.fits]
    if smaller:
        best = min(smaller, key=lambda c: c.cost)
        if not candidates[0].fits or best.cost < candidates[0].cost:
            yield best
    elif not candidates[0].fits and len(candidates) > 1:
        yield candidates[-1]


def _candidate(job: Job, layout: Layout, budget: int) -> Candidate:
    assert job.device_memory is not None
    memory = peak(job.shape, layout, job.regime(layout, budget))
    fits = memory <= job.device_memory * (1 - FREE)
    return Candidate(layout, budget, memory, cost(job, layout, budget), fits)


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
    chosen = Candidate(layout, job.token_budget, memory, 0.0, True)
    return Choice(chosen, (chosen,), reason)


def _runs(job: Job, layout: Layout) -> bool:
    try:
        check(layout, job.shape, job.num_devices, job.devices_per_node, job.global_batch_size)
    except LayoutError:
        return False
    return True


def _why(job: Job, chosen: Candidate, candidates: list[Candidate]) -> str:
    """Plain words: the cheapest fits, or how many cheaper ones do not."""
    assert job.device_memory is not None
    told = f"needs {chosen.memory / GIB:.2f} of {job.device_memory / GIB:.2f} GiB a device"
    cheaper = candidates[: candidates.index(chosen)]
    if not cheaper:
        return f"the cheapest layout, {chosen.layout}, {told}"
    first = cheaper[0]
    lowered = ""
    if chosen.token_budget < job.token_budget:
        lowered = f" with micro-batches of {chosen.token_budget:,} tokens"
    return (
        f"{chosen.layout}{lowered} {told}; {len(cheaper)} cheaper, {first.layout} first, would "
        f"need {min(c.memory for c in cheaper) / GIB:.2f} GiB or more, and a tenth stays free"
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


def _divided(layout: Layout) -> bool:
    return layout.tp > 1 or layout.pp > 1


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
