"""Runs the worker in bare gloo processes, which may leave before the run is over."""

import contextlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.costmodel.layout import Layout
from tests.support.ranks import spawn
from trainers.config.recipe import Recipe
from trainers.runtime.worker import Assignment, work
from trainers.tracking.run_directory import RunDirectory


class _Left(Exception):
    pass


def assigned(recipe: Recipe, run: Path, cache: Path, **degrees: int) -> Assignment:
    """What the workers of `recipe` are told, on CPUs in the layout of `degrees`."""
    layout = Layout(dp_replicate=degrees.pop("dp_replicate", 1), **degrees)
    return Assignment(recipe, RunDirectory(run), cache, "cpu", "test", layout)


Job = tuple[Assignment, int | None]  # and the evaluations after which all leave at once


def work_together(jobs: Sequence[Job], size: int, disks: Path | None = None) -> None:
    """Do the jobs one after another in `size` processes, of which one group is made.

    disks: where each process has a directory that stands for its machine's disk.
    """
    with tempfile.TemporaryDirectory() as meet:
        spawn(_rank, (size, jobs, Path(meet) / "meet", disks), nprocs=size)


def on_disk(assignment: Assignment, disk: Path) -> Assignment:
    """The same for a machine whose disk that is, of a run in a store."""
    return replace(assignment, cache=disk, run=RunDirectory.at(assignment.run.home, disk))


def _rank(rank: int, size: int, jobs: Sequence[Job], meet: Path, disks: Path | None) -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size)
    for assignment, leave_after in jobs:
        if disks is not None:
            assignment = on_disk(assignment, disks / str(rank))
        elif rank == 0:
            assignment.run.path.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        with contextlib.suppress(_Left):
            work(assignment, _Report(leave_after))
    dist.destroy_process_group()


class _Report:
    """Counts evaluations, and ends the run after `leave_after` of them."""

    def __init__(self, leave_after: int | None) -> None:
        self._seen, self._leave_after = 0, leave_after

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._seen += 1
        if self._seen == self._leave_after:
            raise _Left
