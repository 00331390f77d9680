"""Measure the overhead of Ray: the same training worker under Ray Train and under torchrun.

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
from trainers.config.recipe import load_recipe
from trainers.data import prepare
from trainers.runtime import fit
from trainers.runtime.worker import run_worker
from trainers.runtime.worker_config import WorkerConfig
from trainers.tracking import provenance
from trainers.tracking.run_directory import RunDirectory

RESULTS = Path(__file__).parent / "results"
WARMUP = 10  # steps not counted


def recipe_overrides(steps: int) -> list[str]:
    """Return overrides of `steps` steps without evaluations or checkpoints in between."""
    return [
        f"stopping.max_steps={steps}",
        "evaluation.every_steps=1000000",
        "data.validation=0.02",
        "data.test=0.02",
    ]


def run_under_ray(directory: Path, workers: int, steps: int) -> RunDirectory:
    """Train through `fit`."""
    metadata = {"devices_per_node": workers}
    path = directory / "cluster.yaml"
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    fit.fit(
        load_recipe("reviews", recipe_overrides(steps)),
        spec.load_cluster_spec(path),
        directory / "run",
    )
    return RunDirectory(directory / "run")


def run_under_torchrun(directory: Path, workers: int, steps: int) -> RunDirectory:
    """Train with the same worker, started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(workers), __file__]
    command += ["--be-worker", str(directory / "run"), "--steps", str(steps)]
    subprocess.run(command, check=True)
    return RunDirectory(directory / "run")


def run_torchrun_worker(run: Path, steps: int) -> None:
    """Train in a process that torchrun started."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    recipe, directory = load_recipe("reviews", recipe_overrides(steps)), RunDirectory(run)
    if dist.get_rank() == 0:
        directory.acquire(recipe, resume=False)
    dist.barrier()
    cache = spec.load_cluster_spec("local.yaml").cache_dir
    key = prepare.prepare_dataset(recipe, cache).fingerprint
    run_worker(WorkerConfig(recipe, directory, cache, key, "cpu", "benchmark", Layout()))
    dist.destroy_process_group()


def summarize_run(run: RunDirectory, started: float) -> dict[str, float]:
    """Return the median steady step, wall time a steady step, and time to the first step."""
    rows = list(run.metric_rows("step"))
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
        run_torchrun_worker(options.be_worker, options.steps)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    results: dict[str, list[dict[str, Any]]] = {"Ray Train": [], "torchrun": []}
    for number in range(options.rounds):
        for name, start in (("Ray Train", run_under_ray), ("torchrun", run_under_torchrun)):
            with tempfile.TemporaryDirectory() as directory:
                started = time.time()
                results[name].append(
                    summarize_run(start(Path(directory), options.workers, options.steps), started)
                )
            print(f"round {number + 1}  {name:<10} {results[name][-1]}", flush=True)
    print(f"\n{'':<12}step, median  wall a step  to first step")
    for name, rounds in results.items():
        medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        print(
            f"{name:<12}{medians['step_seconds'] * 1e3:9.1f} ms"
            f"{medians['wall_seconds_a_step'] * 1e3:10.1f} ms"
            f"{medians['to_first_step_seconds']:13.1f} s"
        )
    for key in ("step_seconds", "wall_seconds_a_step"):
        pairs = zip(results["Ray Train"], results["torchrun"], strict=True)
        ratios = [a[key] / b[key] for a, b in pairs]
        print(f"Ray / torchrun, {key}: median {statistics.median(ratios):.3f} of {ratios}")
    RESULTS.mkdir(exist_ok=True)
    stored = {"environment": provenance.describe_environment(), "figures": results}
    (RESULTS / f"ray-share-{options.workers}.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
