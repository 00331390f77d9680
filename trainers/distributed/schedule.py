"""The order in which pipeline ranks compute: one forward, one backward (1F1B).

Narayanan et al. 2021 (arXiv 2104.04473), section 2.2, for one stage a rank and for several
(interleaved). Pure arithmetic, so every rank derives the same schedule for all ranks. One rank with
one stage is the plain loop of gradient accumulation: forward, backward, forward, backward.
"""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class PipelineAction:
    """One stage computes one micro-batch, forward or backward."""

    forward: bool
    stage: int
    micro_batch: int

    @property
    def target_stage(self) -> int:
        """The stage that needs the result; outside the model at its ends."""
        return self.stage + (1 if self.forward else -1)


@lru_cache(maxsize=256)
def one_forward_one_backward(
    num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> tuple[tuple[PipelineAction, ...], ...]:
    """Return what each rank computes, in order. Stage s is on rank s % num_ranks.

    With several stages a rank the number of micro-batches must be a multiple of that of ranks: a
    group of them passes through all stages in turn.
    """
    assert stages_per_rank == 1 or num_micro_batches % num_ranks == 0
    orders = []
    for rank in range(num_ranks):
        forwards = _forward_order(rank, num_ranks, stages_per_rank, num_micro_batches)
        # Backwards come in the order of forwards with the rank's stages mirrored: the last first.
        mirrored = (num_ranks * (stages_per_rank - 1)) + 2 * rank
        backwards = [PipelineAction(False, mirrored - f.stage, f.micro_batch) for f in forwards]
        # Warm-up: as many forwards as it takes for the first backward to reach this rank. Fewer
        # would leave it idle, and could deadlock several stages a rank: the first backward waits
        # for forwards of this rank's own later stages. More would only hold more activations.
        warmup = num_ranks - rank - 1
        if stages_per_rank > 1:
            warmup = 2 * warmup + num_ranks * (stages_per_rank - 1)
        warmup = min(warmup, len(forwards))
        order = forwards[:warmup]
        for forward, backward in zip(forwards[warmup:], backwards, strict=False):
            order += [forward, backward]
        orders.append(tuple(order + backwards[len(forwards) - warmup :]))
    return tuple(orders)


def forward_only(
    num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> tuple[tuple[PipelineAction, ...], ...]:
    """Return what each rank computes in an evaluation, in order."""
    return tuple(
        tuple(_forward_order(rank, num_ranks, stages_per_rank, num_micro_batches))
        for rank in range(num_ranks)
    )


def _forward_order(
    rank: int, num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> list[PipelineAction]:
    """Take groups of num_ranks micro-batches through all stages of a rank in turn."""
    return [
        PipelineAction(True, chunk * num_ranks + rank, micro_batch)
        for start in range(0, num_micro_batches, num_ranks)
        for chunk in range(stages_per_rank)
        for micro_batch in range(start, min(start + num_ranks, num_micro_batches))
    ]
