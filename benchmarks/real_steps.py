"""Real steps of a recipe on its own data, one process a worker: what they take, in time and memory.

Three numbers of memory, for they are three things. Tensors: what lives at once, every storage
followed (trainers/planning/memory_tracker.py); this is what the planner predicts. Resident: what
the process has of the machine, above what it had with libraries loaded, data read and a small model
trained; an allocator that keeps what was freed, and libraries that keep code for each shape they
met, are in it. Predicted: cluster/costmodel/memory.py, for the micro-batches that the recipe's own
batches are cut into.
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
from cluster.costmodel.memory import Regime, attention_of, needs, optimizer_of
from cluster.planning.probe import Trial
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.data.microbatch import Cost, cut, global_batch, order
from trainers.distributed.device import DEVICES, autocast_dtype
from trainers.distributed.mesh import Mesh
from trainers.models.build import materialize, outline
from trainers.parallel.parallelize import parallelize
from trainers.planning import probe
from trainers.planning.layout import sizes
from trainers.planning.memory_tracker import Ledger
from trainers.training.events import Step
from trainers.training.loop import Loop

WARMUP = 3  # steps that are not counted
FOLLOWED = range(1, 4)  # steps whose tensors are followed: the first has no moments yet
SMALL = Trial(64, 2, 128, 100, 32, 8, 256)


@dataclass(frozen=True)
class Seen:
    """What rank 0 saw. seconds: median of a step; bytes: the most in any step."""

    seconds: float
    resident: float
    tensors: float
    predicted: float


def seen(name: str, overrides: Sequence[str], workers: int, steps: int) -> Seen:
    """Run the first steps of a recipe, as copies on `workers` processes of this machine."""
    with tempfile.TemporaryDirectory() as directory:
        told = (name, tuple(overrides), workers, steps, Path(directory))
        torch.multiprocessing.spawn(_worker, told, nprocs=workers)
        return Seen(**json.loads((Path(directory) / "seen.json").read_text()))


def _worker(
    rank: int, name: str, overrides: Sequence[str], workers: int, steps: int, directory: Path
) -> None:
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if workers > 1:
        meet = f"file://{directory / 'meet'}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=workers)
    recipe = recipes.load(name, [*overrides, f"stopping.max_steps={10 * (WARMUP + steps)}"])
    subject = _Subject(recipe)
    before = _settled()
    seconds, most = subject.timed(WARMUP + steps)
    gc.collect()
    found = Seen(
        statistics.median(seconds[WARMUP:]),
        most - before,
        subject.followed(),
        max(subject.predicted()),
    )
    if workers > 1:
        dist.destroy_process_group()
    if rank == 0:
        (directory / "seen.json").write_text(json.dumps(asdict(found)))


class _Subject:
    """A recipe with its data read, of which any number of loops can be begun."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._device = recipe, DEVICES["cpu"]
        cache = spec.load("local.yaml").cache
        self._data, self._encoder = (
            prepare.prepare(recipe, cache),
            prepare.encoder_of(recipe, cache),
        )
        self._shape = sizes(recipe, self._data.labels, 0, cache)

    def timed(self, steps: int) -> tuple[list[float], float]:
        """(seconds of each step, the most resident bytes in any)."""
        run, seconds = self._loop().run(), []
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
        for _ in range(steps):
            seconds.append(_next(run).seconds)
        return seconds, _status("VmHWM")

    def followed(self) -> float:
        """The most bytes of tensors that live at once in the followed steps."""
        with Ledger() as ledger:
            loop = self._loop()
            ledger.mark((p for _, p in loop.parallel.named_parameters()), "parameters")
            run = loop.run()
            for _ in range(FOLLOWED.start):
                _next(run)
            ledger.begin()
            for _ in FOLLOWED:
                _next(run)
        return float(ledger.peak)

    def predicted(self) -> Iterator[float]:
        """The same by arithmetic, for each micro-batch of these steps.

        The first of a step meets no gradients yet.
        """
        recipe, loop = self._recipe, self._loop()
        lengths = self._data.train.samples.lengths
        ordered = order(recipe.seed, 0, len(self._data.train))
        layout, masks = loop.mesh.layout, recipe.task == "masked-lm"
        cost = Cost(self._device.overhead_tokens, self._shape.hidden_size)
        for step in FOLLOWED:
            rows = global_batch(ordered, step, recipe.batch.global_size)
            shares = cut(rows, lengths[rows], layout.dp, loop.token_budget, cost)
            share = shares[loop.mesh.dp_rank]
            for number, micro_batch in enumerate(share):
                longest = int(lengths[micro_batch.rows].max())
                precision = (
                    "fp32" if autocast_dtype(self._device, recipe.precision) is None else "bf16"
                )
                regime = Regime(
                    len(micro_batch.rows),
                    longest,
                    len(share) if number else 1,
                    precision,
                    optimizer_of(recipe.optimizer.name, recipe.optimizer.momentum),
                    attention_of(recipe.model.attention_dropout, self._device.kind, precision),
                    round(recipe.masking.share * longest) if masks else None,
                )
                yield needs(self._shape, layout, regime)[0].total

    def _loop(self) -> Loop:
        parallel = parallelize(
            outline(self._recipe, self._data.labels, 0, self._encoder),
            Mesh.of(Layout(), self._device.kind),
            lambda part: materialize(part, self._recipe.seed, self._device.torch_device()),
            None,
        )
        return Loop(self._recipe, self._data, self._encoder, parallel, self._device)


def _next(run: Iterator[object]) -> Step:
    """The next step of a run, past evaluations and moments to save."""
    return next(event for event in run if isinstance(event, Step))


def _settled() -> float:
    """Resident bytes before the model is there, when a small one has made libraries load."""
    run = probe.loop_of(SMALL, DEVICES["cpu"]).run()
    for _ in range(WARMUP):
        _next(run)
    del run
    gc.collect()
    return _status("VmRSS")


def _status(name: str) -> float:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * float(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
