"""Measure time and memory of real steps of a recipe on its own data, one process a worker.

Memory is measured in three ways. Tensors: the most bytes of live storages
(trainers/planning/memory_tracker.py), which the planner predicts. Resident: memory of the process
above that with libraries loaded, data read and a small model trained; it includes the caches of the
allocator and the libraries. Predicted: cluster/costmodel/memory.py for the recipe's micro-batches.
"""

import gc
import json
import logging
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from cluster import spec
from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import TrainingSetup, attention_storage, memory_by_rank, moment_kind
from cluster.planning.probe import ProbeCase
from trainers.config import recipe as recipes
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.microbatch import cut_batch, epoch_order, global_batch_rows
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.models.build import build_on_meta, materialize
from trainers.models.packed import pad_into_rows
from trainers.parallel.parallelize import parallelize
from trainers.planning import probe
from trainers.planning.layout import resolve_shape
from trainers.planning.memory_tracker import MemoryTracker
from trainers.training.events import StepEvent
from trainers.training.loop import TrainingLoop

WARMUP = 3  # steps that are not counted
TRACKED = range(1, 4)  # steps whose tensors are tracked: the first has no moments yet
SMALL = ProbeCase(64, 2, 128, 100, 32, 8, 256)


@dataclass(frozen=True)
class RealSteps:
    """Measured on rank 0. seconds: median of a step; the others: most bytes in any step."""

    seconds: float
    resident: float
    tensors: float
    predicted: float


def run_real_steps(name: str, overrides: Sequence[str], workers: int, steps: int) -> RealSteps:
    """Run the first steps of a recipe, as copies on `workers` processes of this machine."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = (name, tuple(overrides), workers, steps, Path(directory))
        torch.multiprocessing.spawn(_worker, arguments, nprocs=workers)
        return RealSteps(**json.loads((Path(directory) / "result.json").read_text()))


def _worker(
    rank: int, name: str, overrides: Sequence[str], workers: int, steps: int, directory: Path
) -> None:
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if workers > 1:
        init_method = f"file://{directory / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=workers)
    recipe = recipes.load_recipe(name, [*overrides, f"stopping.max_steps={10 * (WARMUP + steps)}"])
    runner = _RecipeRunner(recipe)
    before = _baseline_memory()
    seconds, most = runner.time_steps(WARMUP + steps)
    gc.collect()
    result = RealSteps(
        statistics.median(seconds[WARMUP:]),
        most - before,
        runner.track_peak(),
        max(runner.predict_memory()),
    )
    if workers > 1:
        dist.destroy_process_group()
    if rank == 0:
        (directory / "result.json").write_text(json.dumps(asdict(result)))


class _RecipeRunner:
    """A recipe with its data loaded, which can make any number of training loops."""

    def __init__(self, recipe: Recipe) -> None:
        self._device = DEVICES["cpu"]
        cache = spec.load_cluster_spec("local.yaml").cache_dir
        self._data, self._encoder = (
            prepare.prepare_dataset(recipe, cache),
            prepare.load_recipe_encoder(recipe, cache),
        )
        self._shape = resolve_shape(recipe, self._data.labels, 0, cache)
        rows, width = len(self._data.train), self._shape.hidden_size
        self._recipe = choose_settings(recipe, rows, width).recipe

    def time_steps(self, steps: int) -> tuple[list[float], float]:
        """Run steps and return (seconds of each, most resident bytes)."""
        run, seconds = self._loop().run(), []
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark (VmHWM)
        for _ in range(steps):
            seconds.append(_next_step(run).seconds)
        return seconds, _read_status("VmHWM")

    def track_peak(self) -> float:
        """Return the most bytes of live tensors in the tracked steps."""
        with MemoryTracker() as tracker:
            loop = self._loop()
            tracker.mark_tensors((p for _, p in loop.parallel.named_parameters()), "parameters")
            run = loop.run()
            for _ in range(TRACKED.start):
                _next_step(run)
            tracker.begin_step()
            for _ in TRACKED:
                _next_step(run)
        return float(tracker.peak)

    def predict_memory(self) -> Iterator[float]:
        """Predict the same for each micro-batch of these steps; the first has no gradients yet."""
        recipe, loop = self._recipe, self._loop()
        lengths = self._data.train.samples.lengths
        ordered = epoch_order(recipe.seed, 0, len(self._data.train))
        layout, masks = loop.mesh.layout, recipe.task == "masked-lm"
        for step in TRACKED:
            rows = global_batch_rows(ordered, step, recipe.global_batch_size)
            shares = cut_batch(rows, lengths[rows], layout.dp, loop.token_budget)
            share = shares[loop.mesh.dp_rank]
            for number, micro_batch in enumerate(share):
                sizes = lengths[micro_batch.rows]
                tokens = round(float(sizes.mean()))
                is_even = sizes.min() == sizes.max()
                precision = (
                    "fp32" if autocast_dtype(self._device, recipe.precision) is None else "bf16"
                )
                setup = TrainingSetup(
                    len(micro_batch.rows),
                    tokens,
                    len(share) if number else 1,
                    precision,
                    moment_kind(recipe.optimizer.name, recipe.optimizer.momentum),
                    attention_storage(recipe.model.attention_dropout, self._device.kind, precision),
                    round(recipe.masking.share * tokens) if masks else None,
                    0 if is_even else pad_into_rows(sizes.tolist())[0].size,
                )
                yield memory_by_rank(self._shape, layout, setup)[0].total

    def _loop(self) -> TrainingLoop:
        parallel = parallelize(
            build_on_meta(self._recipe, self._data.labels, 0, self._encoder),
            Mesh.from_layout(Layout(), self._device.kind),
            lambda part: materialize(part, self._recipe.seed, self._device.torch_device()),
            None,
        )
        return TrainingLoop(self._recipe, self._data, self._encoder, parallel, self._device)


def _next_step(run: Iterator[object]) -> StepEvent:
    """Return the next step of a run, skipping other events."""
    return next(event for event in run if isinstance(event, StepEvent))


def _baseline_memory() -> float:
    """Return the resident bytes after a small model made libraries load."""
    run = probe.build_loop(SMALL, DEVICES["cpu"]).run()
    for _ in range(WARMUP):
        _next_step(run)
    del run
    gc.collect()
    return _read_status("VmRSS")


def _read_status(name: str) -> float:
    """Return the bytes in a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * float(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
