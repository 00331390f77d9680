"""A trial that goes on from another's checkpoint: what population-based training needs.

A checkpoint holds weights, moments and the position, and the schedule is a function of the step, so
a run with other settings of the optimizer may begin with it. Knows no Ray.
"""

import os
import shutil
from pathlib import Path

from cluster.errors import BerthaError
from trainers import checkpoint
from trainers.record import RunDirectory


class LineageError(BerthaError):
    """A parent whose checkpoint is not there."""


def inherit(path: Path, parent: Path, tokens: int) -> None:
    """Give the run directory `path` the checkpoint that `parent` has at `tokens`, once."""
    own = RunDirectory(path).checkpoints.directory
    if own.is_dir():
        return
    steps = [
        row["step"] for row in RunDirectory(parent).rows("evaluation") if row["tokens"] == tokens
    ]
    held = checkpoint.find(RunDirectory(parent).checkpoints, steps[-1]) if steps else None
    if held is None:
        raise LineageError(f"{parent}: its checkpoint at {tokens:,} tokens is gone or damaged")
    aside = own.with_name(f".{own.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(held.directory, aside / held.directory.name, copy_function=os.link)
    aside.rename(own)
