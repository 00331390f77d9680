"""Run the worker in bare gloo processes, which may leave before the run is over."""

import contextlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.costmodel.layout import Layout
from tests.support.ranks import spawn_ranks
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.runtime.worker import run_worker
from trainers.runtime.worker_config import WorkerConfig
from trainers.tracking.run_directory import RunDirectory


class _LeftEarly(Exception):
    pass


def worker_config(recipe: Recipe, run: Path, cache: Path, **degrees: int) -> WorkerConfig:
    """Prepare the data of `recipe` and configure its workers, on CPUs in a layout of `degrees`."""
    layout = Layout(dp_replicate=degrees.pop("dp_replicate", 1), **degrees)
    data = prepare.prepare_dataset(recipe, cache)
    recipe = choose_settings(recipe, len(data.train), 384).recipe
    return WorkerConfig(recipe, RunDirectory(run), cache, data.fingerprint, "cpu", "test", layout)


WorkerJob = tuple[WorkerConfig, int | None]  # with the evaluations after which all ranks leave


def run_workers(jobs: Sequence[WorkerJob], size: int, disks: Path | None = None) -> None:
    """Run the jobs one after another in one group of `size` processes.

    disks: gives each process a directory of its own, as its machine's disk.
    """
    with tempfile.TemporaryDirectory() as meet:
        spawn_ranks(_run_rank, (size, jobs, Path(meet) / "meet", disks), nprocs=size)


def with_disk(config: WorkerConfig, disk: Path) -> WorkerConfig:
    """Return `config`, of a run in a store, for a machine with this disk."""
    return replace(config, cache=disk, run=RunDirectory.from_address(config.run.home, disk))


def _run_rank(
    rank: int, size: int, jobs: Sequence[WorkerJob], meet: Path, disks: Path | None
) -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size)
    for config, leave_after in jobs:
        if disks is not None:
            config = with_disk(config, disks / str(rank))
        elif rank == 0:
            config.run.path.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        with contextlib.suppress(_LeftEarly):
            run_worker(config, _LeaveAfter(leave_after))
    dist.destroy_process_group()


class _LeaveAfter:
    """Count evaluations, and end the run after `leave_after` of them."""

    def __init__(self, leave_after: int | None) -> None:
        self._seen, self._leave_after = 0, leave_after

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._seen += 1
        if self._seen == self._leave_after:
            raise _LeftEarly
