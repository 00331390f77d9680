"""The planner after a probe of this machine: predicted steps of real recipes against real ones.

Five recipes of different models, lengths and batches, on one and two workers: the probe times
shapes that are none of theirs for a minute, the planner predicts their steps, and then a few steps
of each are run as a run would (real_steps.py, which says what the columns of memory are). The
machine must be idle. Weights are random, of the same sizes. Eight minutes on two cores.

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

from real_steps import Seen, seen

from cluster.planning import calibrate, demand
from cluster.planning.probe import Local
from trainers.distributed.device import DEVICES
from trainers.planning import probe
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
    """Probe, predict, run, compare."""
    options = _parse()
    device, began = DEVICES["cpu"], os.getloadavg()[0]
    share = options.seconds / len(options.workers)
    known = probe.at_hand(
        device, [m for n in options.workers for m in probe.measured(device.kind, n, share)]
    )
    found = []
    print(
        f"{'recipe':<26}{'workers':>8}{'seen ms':>10}{'predicted':>11}{'error':>8}"
        f"{'tensors MiB':>13}{'predicted':>11}{'error':>8}{'resident':>10}{'error':>8}"
    )
    for workers in options.workers:
        local = known.local(workers)
        for case in options.cases:
            row = _row(
                case, workers, predicted(case, local), seen(*CASES[case], workers, options.steps)
            )
            print(_line(row), flush=True)
            found.append(row)
    record = {
        "environment": provenance.environment(),
        "load_before": began,
        "probe_seconds": options.seconds,
        "steps": options.steps,
        **_summary(found),
        "rows": found,
        "probe": asdict(known),
    }
    for name, told in _summary(found).items():
        print(f"{name:<10}median {told['median']:.1%}, worst {told['worst']:.1%}")
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def predicted(case: str, local: Local) -> float:
    """Seconds of a step of a case, by the planner."""
    name, overrides = CASES[case]
    work = calibrate.work(local.place, demand.read(name, overrides))
    return local.step(replace(work, evaluated=0.0)).total


def _row(case: str, workers: int, seconds: float, real: Seen) -> dict[str, Any]:
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


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:<26}{row['workers']:>8}{row['seen_ms']:>10.1f}{row['predicted_ms']:>11.1f}"
        f"{row['time_error']:>+8.1%}{row['tensors_mib']:>13.1f}{row['predicted_mib']:>11.1f}"
        f"{row['tensors_error']:>+8.1%}{row['resident_mib']:>10.1f}{row['resident_error']:>+8.1%}"
    )


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of time, tensors and resident memory: how wrong the prediction is."""
    found = {}
    for kind in ("time", "tensors", "resident"):
        errors = [abs(row[f"{kind}_error"]) for row in rows]
        found[kind] = {"median": statistics.median(errors), "worst": max(errors)}
    return found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the probe, in all")
    parser.add_argument("--steps", type=int, default=12, help="of each recipe")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
