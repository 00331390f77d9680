"""What Ray adds to a training step: the same worker under Ray Train and under plain torchrun.

Processes of one thread each, the same recipe, in turns; the table compares the median steady step
(metrics.jsonl, the first steps left out) and the time from start to first step. With as many
workers as cores Ray's own processes take time from the workers; with one fewer they do not.

    python benchmarks/ray_share.py --workers 2 --rounds 3 --steps 60
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from cluster import spec
from cluster.costmodel.layout import Layout
from trainers.config import recipe
from trainers.runtime import fit
from trainers.runtime.worker import Assignment, work
from trainers.tracking import provenance
from trainers.tracking.run_directory import RunDirectory

RESULTS = Path(__file__).parent / "results"
WARMUP = 10  # steps not counted


def settings(steps: int) -> list[str]:
    """The demo's recipe, cut to `steps` and without evaluations or checkpoints in between."""
    return [
        f"stopping.max_steps={steps}",
        "evaluation.every_steps=1000000",
        "data.validation=0.02",
        "data.test=0.02",
    ]


def under_ray(directory: Path, workers: int, steps: int) -> RunDirectory:
    """One run through `fit`."""
    metadata = {"devices_per_node": workers}
    path = directory / "cluster.yaml"
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    fit.fit(recipe.load("reviews", settings(steps)), spec.load(path), directory / "run")
    return RunDirectory(directory / "run")


def under_torchrun(directory: Path, workers: int, steps: int) -> RunDirectory:
    """One run of the same worker, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(workers), __file__]
    command += ["--be-worker", str(directory / "run"), "--steps", str(steps)]
    subprocess.run(command, check=True)
    return RunDirectory(directory / "run")


def be_worker(run: Path, steps: int) -> None:
    """What torchrun starts."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    made, directory = recipe.load("reviews", settings(steps)), RunDirectory(run)
    if dist.get_rank() == 0:
        directory.claim(made, resume=False)
    dist.barrier()
    work(Assignment(made, directory, spec.load("local.yaml").cache, "cpu", "benchmark", Layout()))
    dist.destroy_process_group()


def figures(run: RunDirectory, started: float) -> dict[str, float]:
    """Median steady step, tokens/s over the steady steps, and the time to the first step."""
    rows = list(run.rows("step"))
    steady = rows[WARMUP:]
    wall = steady[-1]["time"] - rows[WARMUP - 1]["time"]
    return {
        "step_seconds": statistics.median(row["seconds"] for row in steady),
        "wall_seconds_a_step": wall / len(steady),
        "to_first_step_seconds": rows[0]["time"] - started,
    }


def main() -> None:
    """Run the turns, print the table, store the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--be-worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_worker:
        be_worker(options.be_worker, options.steps)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, list[dict[str, Any]]] = {"Ray Train": [], "torchrun": []}
    for number in range(options.rounds):
        for name, start in (("Ray Train", under_ray), ("torchrun", under_torchrun)):
            with tempfile.TemporaryDirectory() as directory:
                started = time.time()
                found[name].append(
                    figures(start(Path(directory), options.workers, options.steps), started)
                )
            print(f"round {number + 1}  {name:<10} {found[name][-1]}", flush=True)
    print(f"\n{'':<12}step, median  wall a step  to first step")
    for name, rounds in found.items():
        medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        print(
            f"{name:<12}{medians['step_seconds'] * 1e3:9.1f} ms"
            f"{medians['wall_seconds_a_step'] * 1e3:10.1f} ms"
            f"{medians['to_first_step_seconds']:13.1f} s"
        )
    for key in ("step_seconds", "wall_seconds_a_step"):
        pairs = zip(found["Ray Train"], found["torchrun"], strict=True)
        ratios = [a[key] / b[key] for a, b in pairs]
        print(f"Ray / torchrun, {key}: median {statistics.median(ratios):.3f} of {ratios}")
    RESULTS.mkdir(exist_ok=True)
    stored = {"environment": provenance.environment(), "figures": found}
    (RESULTS / f"ray-share-{options.workers}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
