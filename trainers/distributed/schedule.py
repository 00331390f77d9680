"""The order in which pipeline ranks compute: one forward, one backward.

Narayanan et al. 2021 (arXiv 2104.04473), section 2.2, for one stage a rank and for several. Pure
arithmetic: all ranks come to the same schedule. One rank with one stage is the plain loop: forward,
backward, forward, backward.
"""

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Action:
    """One stage computes one micro-batch, forward or backward."""

    forward: bool
    stage: int
    micro_batch: int

    @property
    def goes_to(self) -> int:
        """The stage that needs what this gives; outside the model for its ends."""
        return self.stage + (1 if self.forward else -1)


@lru_cache(maxsize=256)
def one_forward_one_backward(
    num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> tuple[tuple[Action, ...], ...]:
    """What each rank computes, in order. Stage s is on rank s % num_ranks.

    A rank begins with as many forwards as it takes for the first backward to reach it, then takes
    turns, then does the backwards that are left. With several stages a rank the number of
    micro-batches must be a multiple of that of ranks: a group passes through all stages in turn.
    """
    assert stages_per_rank == 1 or num_micro_batches % num_ranks == 0
    orders = []
    for rank in range(num_ranks):
        forwards = _forwards(rank, num_ranks, stages_per_rank, num_micro_batches)
        mirrored = (num_ranks * (stages_per_rank - 1)) + 2 * rank
        backwards = [Action(False, mirrored - f.stage, f.micro_batch) for f in forwards]
        ahead = num_ranks - rank - 1
        if stages_per_rank > 1:
            ahead = 2 * ahead + num_ranks * (stages_per_rank - 1)
        ahead = min(ahead, len(forwards))
        order = forwards[:ahead]
        for forward, backward in zip(forwards[ahead:], backwards, strict=False):
            order += [forward, backward]
        orders.append(tuple(order + backwards[len(forwards) - ahead :]))
    return tuple(orders)


def forward_only(
    num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> tuple[tuple[Action, ...], ...]:
    """What each rank computes in an evaluation: micro-batches of a group, stage by stage."""
    return tuple(
        tuple(_forwards(rank, num_ranks, stages_per_rank, num_micro_batches))
        for rank in range(num_ranks)
    )


def _forwards(
    rank: int, num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> list[Action]:
    """Forwards of a rank: groups of num_ranks micro-batches pass through all its stages in turn."""
    return [
        Action(True, chunk * num_ranks + rank, micro_batch)
        for start in range(0, num_micro_batches, num_ranks)
        for chunk in range(stages_per_rank)
        for micro_batch in range(start, min(start + num_ranks, num_micro_batches))
    ]
