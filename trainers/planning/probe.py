"""Real steps of a few shapes, timed on this machine's devices, for the planner to learn from.

The steps are those of a run: the loop, the layout and the optimizer, on random weights and random
texts. One process a worker, as in a run; for every number of workers the time is shared out.

    python -m trainers.planning.probe --workers 1 2 --seconds 60 --out probe.json
"""

import argparse
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cluster.costmodel.layout import Layout
from cluster.planning import probe
from cluster.planning.probe import Measurement, Probe, Trial
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data.dataset_cache import Data, DataReport, Split
from trainers.data.ragged import Samples
from trainers.data.tokenizer import TextEncoder
from trainers.distributed.device import DEVICES, Device, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.models.build import materialize, outline
from trainers.parallel.parallelize import parallelize
from trainers.training.events import Step
from trainers.training.loop import Loop

# Two widths, short and long sequences, alike and not, one and several micro-batches, few and many
# layers, a small and a large table of words: what the constants of cluster/planning/probe.py differ
# by.
TRIALS = (
    Trial(384, 2, 1536, 30522, 64, 16, 2048),
    Trial(384, 6, 1536, 1000, 32, 8, 2048),
    Trial(384, 2, 1536, 1000, 128, 16, 2048),
    Trial(384, 2, 1536, 1000, 512, 4, 2048),
    Trial(384, 4, 1536, 1000, 256, 16, 2048),
    Trial(128, 4, 512, 8000, 128, 32, 2048),
    Trial(768, 1, 3072, 1000, 128, 8, 2048),
    Trial(768, 2, 3072, 1000, 256, 8, 2048),
    Trial(384, 6, 1536, 1000, 24, 48, 2048, spread=0.9),
    Trial(384, 2, 1536, 1000, 96, 24, 2048, spread=0.9),
)
BATCHES = 50  # different ones, where lengths differ: more than are timed
WARMUP = 1  # passes over the trials that are not counted


def measured(
    device: str, workers: int, seconds: float, trials: Sequence[Trial] = TRIALS
) -> list[Measurement]:
    """Steps of each trial, `seconds` in all, on `workers` processes."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    apart = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(workers, mp_context=apart) as processes,
    ):
        meet = Path(directory) / "meet"
        ranks = [
            processes.submit(_worker, rank, device, workers, threads, seconds, trials, meet)
            for rank in range(workers)
        ]
        first, *_ = [rank.result() for rank in ranks]
    return [Measurement(trial, workers, s) for trial, s in zip(trials, first, strict=True)]


def at_hand(device: Device, measurements: Sequence[Measurement]) -> Probe:
    """A probe of this machine's devices."""
    name, memory = "this machine", float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if device.kind == "cuda":
        name = torch.cuda.get_device_name()
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    precision = {None: "fp32", torch.float16: "fp16"}.get(device.autocast_dtype(), "bf16")
    return Probe(device.kind, name, precision, memory, tuple(measurements))  # type: ignore[arg-type]


def _worker(
    rank: int,
    device: str,
    workers: int,
    threads: int,
    limit: float,
    trials: Sequence[Trial],
    meet: Path,
) -> list[float]:
    """One rank of a probe: seconds of a step of each trial."""
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
        return _seconds(trials, row, limit)
    finally:
        if workers > 1:
            dist.destroy_process_group()


def _seconds(trials: Sequence[Trial], device: Device, limit: float) -> list[float]:
    """The median step of each trial, of as many passes over all of them as `limit` seconds allow.

    One step of each in turn, so that a disturbed moment, or a warm processor, falls on all alike.
    Every rank makes the same number of passes: that of the first, which all hear after each.
    """
    runs = [loop_of(trial, device).run() for trial in trials]
    taken: list[list[float]] = [[] for _ in trials]
    began, passes = time.perf_counter(), 0
    while True:
        for run, seconds in zip(runs, taken, strict=True):
            step = next(run)
            while not isinstance(step, Step):  # an evaluation or a moment to save
                step = next(run)
            seconds.append(step.seconds)
        passes += 1
        if _agreed(passes >= WARMUP + 3 and time.perf_counter() - began > limit, device):
            return [statistics.median(seconds[WARMUP:]) for seconds in taken]


def _agreed(enough: bool, device: Device) -> bool:
    if not dist.is_initialized():
        return enough
    told = torch.tensor(float(enough), device=device.torch_device())
    dist.broadcast(told, src=0)
    return bool(told.item())


def loop_of(trial: Trial, device: Device) -> Loop:
    """The loop of a run over random texts, of which there are enough."""
    recipe, encoder = _recipe(trial), _Words(trial.vocab_size)
    mesh, place = Mesh.of(Layout(), device.kind), device.torch_device()
    parallel = parallelize(
        outline(recipe, ("no", "yes"), trial.longest, encoder),
        mesh,
        lambda part: materialize(part, recipe.seed, place),
        autocast_dtype(device, recipe.precision),
    )
    return Loop(recipe, _data(trial), encoder, parallel, device, trial.token_budget)


def _recipe(trial: Trial) -> Recipe:
    return recipes.parse(
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
            "batch": {"global_size": trial.sequences, "max_length": trial.longest},
            "stopping": {"epochs": 1_000_000},
        },
        "probe",
    )


def _data(trial: Trial) -> Data:
    """One epoch of random tokens: one global batch where all are alike; every epoch is the same."""
    draw = np.random.default_rng(0)
    count = trial.sequences * (BATCHES if trial.spread else 1)
    shortest = max(1, 2 * trial.tokens - trial.longest)
    lengths = draw.integers(shortest, trial.longest, count, endpoint=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = draw.integers(5, trial.vocab_size, offsets[-1], dtype=np.int32)
    targets = draw.integers(0, 2, count).astype(np.int64)
    nothing = Split(Samples(values[:0], offsets[:1]), targets[:0])
    report = DataReport(count, (), {}, {}, {}, 0, 0, 0, 0.0, {})
    whole = Split(Samples(values, offsets), targets)
    return Data(whole, nothing, nothing, ("no", "yes"), report, "random")


class _Words(TextEncoder):
    """A tokenizer of which only the size is known."""

    def __init__(self, num_tokens: int) -> None:
        self.pad, self.num_tokens = 0, num_tokens


def _numbers(kind: str) -> list[int]:
    """One device, and all of this machine; of processors two workers, as cluster/local.yaml has."""
    most = min(2, os.cpu_count() or 1) if kind == "cpu" else torch.accelerator.device_count()
    return sorted({1, most})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write the probe."""
    parser = argparse.ArgumentParser(prog="python -m trainers.planning.probe", description=__doc__)
    parser.add_argument("--device", choices=sorted(DEVICES), default=None)
    parser.add_argument("--workers", type=int, nargs="+", metavar="N", help="default: 1 and more")
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, for steps")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    workers = options.workers or _numbers(kind)
    found = [m for n in workers for m in measured(kind, n, options.seconds / len(workers))]
    probe.write(options.out, at_hand(DEVICES[kind], found))
    for each in found:
        print(f"{each.workers} worker(s)  {1000 * each.seconds:9.1f} ms  {each.trial}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
