"""Compare predicted with measured steps of real recipes on this machine.

Five recipes of different models, lengths and batches, on one and two workers: the probe times
other shapes for a minute, the planner predicts the steps of the recipes, and then a few steps of
each are run (real_steps.py, which defines the columns of memory). Needs an idle
machine. Weights are random, of the same sizes. Eight minutes on two cores.

    python benchmarks/probe.py --seconds 60 --steps 12     # writes results/probe.json
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from real_steps import RealSteps, run_real_steps

from cluster.planning.probe import ProbedDevices
from trainers.planning.probe import run_probe
from trainers.planning.workload import load_workload
from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results" / "probe.json"
MIB = 2**20
# Recipe and overrides: five models of 4 to 6 layers and 128 to 384 wide, 27 to 512 tokens.
CASES: dict[str, tuple[str, Sequence[str]]] = {
    "reviews": ("reviews", ()),
    "reviews, batches of 128": ("reviews", ("batch.global_size=128",)),
    "imdb": ("imdb", ()),
    "bbc-news": ("bbc-news", ()),
    "tiny-pretrain": ("tiny-pretrain", ()),
}


def main() -> int:
    """Probe, predict, run and compare; print and store the rows."""
    options = _parse_args()
    load_before = os.getloadavg()[0]
    measured = run_probe(options.seconds, "cpu", options.workers)
    rows = []
    print(
        f"{'recipe':<26}{'workers':>8}{'seen ms':>10}{'predicted':>11}{'error':>8}"
        f"{'tensors MiB':>13}{'predicted':>11}{'error':>8}{'resident':>10}{'error':>8}"
    )
    for workers in options.workers:
        local = measured.fit_devices(workers)
        for case in options.cases:
            row = _compare_case(
                case,
                workers,
                predict_case(case, local),
                run_real_steps(*CASES[case], workers, options.steps),
            )
            print(_format_row(row), flush=True)
            rows.append(row)
    record = {
        "environment": provenance.describe_environment(),
        "load_before": load_before,
        "probe_seconds": options.seconds,
        "steps": options.steps,
        **_summarize_errors(rows),
        "rows": rows,
        "probe": asdict(measured),
    }
    for name, errors in _summarize_errors(rows).items():
        print(f"{name:<10}median {errors['median']:.1%}, worst {errors['worst']:.1%}")
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def predict_case(case: str, local: ProbedDevices) -> float:
    """Predict the seconds of a step of a case."""
    name, overrides = CASES[case]
    work = load_workload(name, overrides).work_on(local.topology)
    return local.predict_step(replace(work, eval_ratio=0.0)).total


def _compare_case(case: str, workers: int, seconds: float, real: RealSteps) -> dict[str, Any]:
    return {
        "case": case,
        "workers": workers,
        "seen_ms": 1000 * real.seconds,
        "predicted_ms": 1000 * seconds,
        "time_error": seconds / real.seconds - 1,
        "tensors_mib": real.tensors / MIB,
        "resident_mib": real.resident / MIB,
        "predicted_mib": real.predicted / MIB,
        "tensors_error": real.predicted / real.tensors - 1,
        "resident_error": real.predicted / real.resident - 1,
    }


def _format_row(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:<26}{row['workers']:>8}{row['seen_ms']:>10.1f}{row['predicted_ms']:>11.1f}"
        f"{row['time_error']:>+8.1%}{row['tensors_mib']:>13.1f}{row['predicted_mib']:>11.1f}"
        f"{row['tensors_error']:>+8.1%}{row['resident_mib']:>10.1f}{row['resident_error']:>+8.1%}"
    )


def _summarize_errors(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the median and worst error of time, tensors and resident memory."""
    summary = {}
    for kind in ("time", "tensors", "resident"):
        errors = [abs(row[f"{kind}_error"]) for row in rows]
        summary[kind] = {"median": statistics.median(errors), "worst": max(errors)}
    return summary


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the probe, in all")
    parser.add_argument("--steps", type=int, default=12, help="of each recipe")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
