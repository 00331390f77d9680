"""The token budget of a GPU, from its memory: the most tokens that it may compute at once.

Larger micro-batches are fewer, with fewer kernels to launch and fewer weights to read; beyond what
keeps a GPU busy they gain nothing, so the steps end. The memory model is arithmetic: a run may
correct it by a probe, and halves the budget where memory runs out all the same.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from dataclasses import replace

from cluster.costmodel.job import TrainingJob
from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import TrainingSetup, peak_memory
from cluster.costmodel.model_shape import ModelShape

BUDGETS = (
    2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072,
)  # fmt: skip
# Of a device's memory. The rest is for its libraries' context, for fragmentation where every
# micro-batch has another shape, and for the error of the model.
USED_SHARE = 0.85


def fitting_token_budget(job: TrainingJob, layout: Layout) -> int | None:
    """Return the largest of BUDGETS that `layout` trains with in USED_SHARE of the memory.

    Weighed with micro-batches that are full of longest samples, even where a global batch has
    fewer: evaluation fills them. None where the memory is unknown or not even the smallest fits; it
    holds one longest sample.
    """
    if job.device_memory is None:
        return None
    budgets = [each for each in BUDGETS if each >= job.max_length] or [job.max_length]
    room = USED_SHARE * job.device_memory
    fitting = bisect_right(budgets, room, key=lambda budget: _full_peak(job, layout, budget))
    return budgets[fitting - 1] if fitting else None


def _full_peak(job: TrainingJob, layout: Layout, budget: int) -> float:
    """Return the bytes on the fullest device while full micro-batches of `budget` follow."""
    setup = job.training_setup(layout, budget)
    setup = replace(
        setup,
        sequences=max(1, budget // job.max_length),
        num_micro_batches=max(setup.num_micro_batches, 2 * layout.pp),
    )
    return _cached_peak(job.shape, layout, setup)


@functools.lru_cache(maxsize=4096)  # a plan asks the same of many machines
def _cached_peak(shape: ModelShape, layout: Layout, setup: TrainingSetup) -> float:
    return peak_memory(shape, layout, setup)
