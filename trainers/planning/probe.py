"""Time real training steps of a few model shapes on this machine, to calibrate the planner.

The steps are those of a run: the loop, the layout and the optimizer, on random weights and random
token ids. One process a worker, as in a run; the time is divided among the numbers of workers.

    bertha probe --workers 1 2 --seconds 60 --out probe.json
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cluster.costmodel.layout import Layout
from cluster.planning import probe
from cluster.planning.probe import Measurement, Probe, ProbeCase
from cluster.settings import SettingsError
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import DatasetSplit, PreparedDataset
from trainers.data.ragged import RaggedArray
from trainers.data.report import DataReport
from trainers.distributed.device import DEVICES, Device, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.distributed.object_collectives import run_on_rank0
from trainers.models.build import build_on_meta, materialize
from trainers.parallel.parallelize import parallelize
from trainers.planning.fake import FakeTokenizer
from trainers.training.events import StepEvent
from trainers.training.loop import TrainingLoop

# Two widths, short and long sequences, alike and not, one and several micro-batches, few and many
# layers, a small and a large table of words: what the constants of cluster/planning/probe.py differ
# by.
TRIALS = (
    ProbeCase(384, 2, 1536, 30522, 64, 16, 2048),
    ProbeCase(384, 6, 1536, 1000, 32, 8, 2048),
    ProbeCase(384, 2, 1536, 1000, 128, 16, 2048),
    ProbeCase(384, 2, 1536, 1000, 512, 4, 2048),
    ProbeCase(384, 4, 1536, 1000, 256, 16, 2048),
    ProbeCase(128, 4, 512, 8000, 128, 32, 2048),
    ProbeCase(768, 1, 3072, 1000, 128, 8, 2048),
    ProbeCase(768, 2, 3072, 1000, 256, 8, 2048),
    ProbeCase(384, 6, 1536, 1000, 24, 48, 2048, spread=0.9),
    ProbeCase(384, 2, 1536, 1000, 96, 24, 2048, spread=0.9),
)
BATCHES = 50  # different ones, where lengths differ: more than are timed
WARMUP = 1  # passes over the trials that are not counted


def measure_trials(
    device: str, workers: int, seconds: float, trials: Sequence[ProbeCase] = TRIALS
) -> list[Measurement]:
    """Time steps of each trial for `seconds` in all, on `workers` processes."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(workers, mp_context=context) as processes,
    ):
        meet = Path(directory) / "meet"
        ranks = [
            processes.submit(_measure_rank, rank, device, workers, threads, seconds, trials, meet)
            for rank in range(workers)
        ]
        first, *_ = [rank.result() for rank in ranks]
    return [Measurement(trial, workers, s) for trial, s in zip(trials, first, strict=True)]


def run_probe(
    seconds: float, kind: str | None = None, workers: Sequence[int] | None = None
) -> Probe:
    """Time steps for `seconds` in all; by default on a GPU, else on processors, one and more."""
    kind = kind or ("cuda" if torch.cuda.is_available() else "cpu")
    workers = workers or _default_workers(kind)
    measurements = [m for n in workers for m in measure_trials(kind, n, seconds / len(workers))]
    return build_probe(DEVICES[kind], measurements)


def build_probe(device: Device, measurements: Sequence[Measurement]) -> Probe:
    """Describe this machine's devices, with `measurements`."""
    name, memory = "this machine", float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if device.kind == "cuda":
        name = torch.cuda.get_device_name()
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    precision = {None: "fp32", torch.float16: "fp16"}.get(device.autocast_dtype(), "bf16")
    return Probe(device.kind, name, precision, memory, tuple(measurements))  # type: ignore[arg-type]


def _measure_rank(
    rank: int,
    device: str,
    workers: int,
    threads: int,
    limit: float,
    trials: Sequence[ProbeCase],
    meet: Path,
) -> list[float]:
    """Run one rank of a probe; return the seconds of a step of each trial."""
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    row = DEVICES[device]
    if device == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.accelerator.set_device_index(rank)
    if workers > 1:
        place = f"file://{meet}"
        dist.init_process_group(row.backend, init_method=place, rank=rank, world_size=workers)
    try:
        return _median_step_seconds(trials, row, limit)
    finally:
        if workers > 1:
            dist.destroy_process_group()


def _median_step_seconds(trials: Sequence[ProbeCase], device: Device, limit: float) -> list[float]:
    """Return the median step of each trial, of as many passes over all as `limit` seconds allow.

    One step of each in turn, so that a disturbance, or a hot processor, slows all trials alike.
    Every rank makes as many passes as rank 0, which broadcasts after each whether to stop.
    """
    runs = [build_loop(trial, device).run(waits=True) for trial in trials]
    timings: list[list[float]] = [[] for _ in trials]
    started, passes = time.perf_counter(), 0
    while True:
        for run, seconds in zip(runs, timings, strict=True):
            step = next(run)
            while not isinstance(step, StepEvent):  # an evaluation or a moment to save
                step = next(run)
            seconds.append(step.seconds)
        passes += 1
        is_over = passes >= WARMUP + 3 and time.perf_counter() - started > limit
        if run_on_rank0(partial(bool, is_over)):
            return [statistics.median(seconds[WARMUP:]) for seconds in timings]


def build_loop(trial: ProbeCase, device: Device) -> TrainingLoop:
    """Build the training loop of a run over random token ids."""
    recipe, encoder = _trial_recipe(trial), FakeTokenizer(trial.vocab_size)
    mesh, place = Mesh.from_layout(Layout(), device.kind), device.torch_device()
    parallel = parallelize(
        build_on_meta(recipe, ("no", "yes"), trial.max_tokens, encoder),
        mesh,
        lambda part: materialize(part, recipe.seed, place),
        autocast_dtype(device, recipe.precision),
    )
    return TrainingLoop(
        recipe, _random_dataset(trial), encoder, parallel, device, trial.token_budget
    )


def _trial_recipe(trial: ProbeCase) -> Recipe:
    return recipes.parse_recipe(
        {
            "task": "classification",
            "model": {
                "name": "random",
                "vocabulary_size": trial.vocab_size,
                "hidden_size": trial.hidden_size,
                "num_hidden_layers": trial.num_layers,
                "num_attention_heads": trial.num_heads,
                "intermediate_size": trial.intermediate_size,
            },
            "data": {"source": "random", "validation": 0.0, "test": 0.0},
            "batch": {"global_size": trial.sequences, "max_length": trial.max_tokens},
            "optimizer": {"learning_rate": 5e-5},
            "stopping": {"epochs": 1_000_000},
        },
        "probe",
    )


def _random_dataset(trial: ProbeCase) -> PreparedDataset:
    """Return random tokens: one global batch if all lengths are equal; every epoch is the same."""
    draw = np.random.default_rng(0)
    count = trial.sequences * (BATCHES if trial.spread else 1)
    shortest = max(1, 2 * trial.tokens - trial.max_tokens)
    lengths = draw.integers(shortest, trial.max_tokens, count, endpoint=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = draw.integers(5, trial.vocab_size, offsets[-1], dtype=np.int32)
    targets = draw.integers(0, 2, count).astype(np.int64)
    nothing = DatasetSplit(RaggedArray(values[:0], offsets[:1]), targets[:0])
    report = DataReport(count, (), {}, {}, {}, 0, 0, 0, 0.0, {})
    whole = DatasetSplit(RaggedArray(values, offsets), targets)
    return PreparedDataset(whole, nothing, nothing, ("no", "yes"), report, "random")


def _default_workers(kind: str) -> list[int]:
    """Return one worker and as many as there are devices; CPUs: two, as in cluster/local.yaml."""
    most = min(2, os.cpu_count() or 1) if kind == "cpu" else torch.accelerator.device_count()
    return sorted({1, most})


def measure_to_file(options: argparse.Namespace) -> int:
    """Run the command `probe`: measure here and write the file. Raises SettingsError."""
    if options.device not in (None, *DEVICES):
        raise SettingsError(f"--device {options.device}: choose one of {', '.join(DEVICES)}")
    found = run_probe(options.seconds, options.device, options.workers)
    probe.write_probe(options.out, found)
    for each in found.measurements:
        print(f"{each.workers} worker(s)  {1000 * each.seconds:9.1f} ms  {each.trial}")
    return 0
