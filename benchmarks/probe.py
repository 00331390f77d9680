"""The planner after a probe of this machine: predicted steps of real recipes against real ones.

Five recipes of different models, lengths and batches, on one and two workers: the probe times
shapes that are none of theirs for a minute, the planner predicts their steps, and then a few steps
of each are run as a run would. The machine must be idle. Weights are random, of the same sizes.

    python benchmarks/probe.py --seconds 60 --steps 12     # writes results/probe.json
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

from cluster import spec
from cluster.layout import Layout
from cluster.planning import demand
from cluster.planning.cost import Work
from cluster.planning.probe import Local
from trainers import data, probe, provenance
from trainers import recipe as recipes
from trainers.device import DEVICES
from trainers.loop import Loop
from trainers.mesh import Mesh
from trainers.model import materialize, outline
from trainers.parallelize import parallelize

RESULTS = Path(__file__).parent / "results" / "probe.json"
WARMUP = 3  # steps that are not counted
# Recipe and overrides: five models of 4 to 6 layers and 128 to 384 wide, 27 to 512 tokens.
CASES = {
    "reviews": ("reviews", ()),
    "reviews, batches of 128": ("reviews", ("batch.global_size=128",)),
    "imdb": ("imdb", ()),
    "bbc-news": ("bbc-news", ()),
    "tiny-pretrain": ("tiny-pretrain", ()),
}


def main() -> int:
    """Probe, predict, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the probe, in all")
    parser.add_argument("--steps", type=int, default=12, help="of each recipe")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = DEVICES["cpu"]
    share = options.seconds / len(options.workers)
    timed = [m for n in options.workers for m in probe.measured(device.kind, n, share)]
    known = probe.at_hand(device, timed)
    found = []
    print(f"{'recipe':<26}{'workers':>8}{'seen ms':>10}{'predicted':>11}{'error':>8}")
    for workers in options.workers:
        local = known.local(workers)
        for case in options.cases:
            seen = _seen(case, workers, options.steps)
            expected = 1000 * predicted(case, local, device.token_budget)
            error = expected / seen - 1
            print(f"{case:<26}{workers:>8}{seen:>10.1f}{expected:>11.1f}{error:>+8.1%}", flush=True)
            found.append(
                {"case": case, "workers": workers, "seen_ms": seen, "predicted_ms": expected}
            )
    errors = [abs(row["predicted_ms"] / row["seen_ms"] - 1) for row in found]
    print(f"median {statistics.median(errors):.1%}, worst {max(errors):.1%}")
    record = {
        "environment": provenance.environment(),
        "probe_seconds": options.seconds,
        "steps": options.steps,
        "median": statistics.median(errors),
        "rows": found,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def predicted(case: str, local: Local, token_budget: int) -> float:
    """Seconds of a step of a case, by the planner."""
    name, overrides = CASES[case]
    asked = demand.read(name, overrides)
    work = Work(
        asked.shape,
        asked.global_batch,
        max(1.0, max(token_budget, asked.max_length) / asked.computed_tokens),
        asked.computed_tokens,
        asked.attended,
        asked.masked,
        optimizer=asked.optimizer,
    )
    return local.step(work).total


def _seen(case: str, workers: int, steps: int) -> float:
    """Median milliseconds of a real step."""
    with tempfile.TemporaryDirectory() as directory:
        told = (case, workers, steps, Path(directory))
        torch.multiprocessing.spawn(_worker, told, nprocs=workers)
        return 1000 * float((Path(directory) / "seconds").read_text())


def _worker(rank: int, case: str, workers: int, steps: int, directory: Path) -> None:
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if workers > 1:
        meet = f"file://{directory / 'meet'}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=workers)
    seconds = _steps(case, steps)
    if workers > 1:
        dist.destroy_process_group()
    if rank == 0:
        (directory / "seconds").write_text(repr(statistics.median(seconds[WARMUP:])))


def _steps(case: str, steps: int) -> Sequence[float]:
    """Seconds of each of the first `steps` of a recipe, on its own data."""
    name, overrides = CASES[case]
    recipe = recipes.load(name, [*overrides, f"stopping.max_steps={WARMUP + steps}"])
    cache = spec.load("local.yaml").cache
    device, prepared = DEVICES["cpu"], data.prepare(recipe, cache)
    encoder = data.encoder_of(recipe, cache)
    parallel = parallelize(
        outline(recipe, prepared.labels, 0, encoder),
        Mesh.of(Layout(), device.kind),
        lambda part: materialize(part, recipe.seed, device.torch_device()),
        None,
    )
    loop, taken = Loop(recipe, prepared, encoder, parallel, device), []
    for event in loop.run():
        taken.append(float(getattr(event, "seconds", 0.0)))
        if len(taken) == WARMUP + steps:
            break
    return taken


if __name__ == "__main__":
    sys.exit(main())
