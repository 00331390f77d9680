"""A trial that goes on from another's checkpoint: what population-based training needs.

A checkpoint holds weights, moments and the position, and the schedule is a function of the step, so
a run with other settings of the optimizer may begin with it. Knows no Ray.
"""

from cluster.errors import BerthaError
from trainers.checkpoint import checkpoint
from trainers.tracking.run_directory import RunDirectory


class LineageError(BerthaError):
    """A parent whose checkpoint is not there."""


def inherit(run: RunDirectory, parent: RunDirectory, tokens: int) -> None:
    """Give `run` the checkpoint that `parent` has at `tokens`, once."""
    if checkpoint.latest(run.checkpoints) is not None:
        return
    steps = [row["step"] for row in parent.published("evaluation") if row["tokens"] == tokens]
    if not steps or not checkpoint.adopt(run.checkpoints, parent.checkpoints, steps[-1]):
        raise LineageError(
            f"{parent.address}: its checkpoint at {tokens:,} tokens is gone or damaged"
        )
