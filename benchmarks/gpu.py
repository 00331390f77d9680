"""Prove training on a GPU: the same numbers as the CPU, no waits, and its speed beside Trainer's.

Each check runs in a process of its own within its own time limit, and adds its rows to the record;
what cannot run here is skipped and said. Needs no network, and no Ray: models are random, of
BERT-base's sizes. The CPU form, with tiny models, runs the same code.

    make check-gpu                                          # all checks, under eight minutes
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --tiny            # the CPU form
    PYTHONPATH=. python benchmarks/gpu.py --only parity --only train
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_speed
import torch

from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"
LINE = "RESULT "  # begins the line of a check's result on its standard output


@dataclass(frozen=True)
class Check:
    """A check by name: seconds that it may take, and what it runs, given (device, tiny)."""

    name: str
    limit: float
    run: Callable[[str, bool], Iterable[dict[str, Any]]]


CHECKS = [
    Check("ceilings", 30, gpu_checks.measure_ceilings),
    Check("parity", 75, gpu_checks.compare_with_cpu),
    Check("resume", 30, gpu_checks.compare_resumed),
    Check("waits", 30, gpu_checks.count_waits),
    Check("train", 200, gpu_speed.race_trainer),
    Check("dropout", 30, gpu_speed.measure_dropout),
    Check("evaluation", 30, gpu_speed.compare_evaluations),
    Check("memory", 40, gpu_speed.compare_memory),
]


def run_alone(check: Check, device: str, tiny: bool) -> dict[str, Any]:
    """Run one check in a process of its own; return its record."""
    command = [sys.executable, __file__, "--run", check.name, "--device", device]
    started = time.monotonic()
    record: dict[str, Any] = {"check": check.name, "rows": [], "error": None}
    try:
        done = subprocess.run(
            [*command, *(["--tiny"] if tiny else [])],
            capture_output=True, text=True, timeout=check.limit, check=False,
        )  # fmt: skip
        lines = [each for each in done.stdout.splitlines() if each.startswith(LINE)]
        record["rows"] = [json.loads(line.removeprefix(LINE)) for line in lines]
        if done.returncode:
            record["error"] = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
    except subprocess.TimeoutExpired:
        record["error"] = [f"took more than {check.limit:g} s"]
    return record | {"seconds": round(time.monotonic() - started, 1)}


def format_row(row: dict[str, Any]) -> str:
    """Return the figures of a row on one line."""

    def show(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return "  ".join(f"{name} {show(value)}" for name, value in row.items())


def main() -> int:
    """Run the checks, print them as they end and store their JSON; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps")
    parser.add_argument("--only", action="append", choices=[each.name for each in CHECKS])
    parser.add_argument("--run", choices=[each.name for each in CHECKS], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="default: results/gpu.json, or gpu-cpu-form.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("check-gpu: this machine has no CUDA GPU; --device cpu --tiny runs the CPU form")
        return 2
    by_name = {check.name: check for check in CHECKS}
    if options.run:
        for row in by_name[options.run].run(options.device, options.tiny):
            print(LINE + json.dumps(row), flush=True)
        return 0
    form = "gpu.json" if options.device == "cuda" else "gpu-cpu-form.json"
    out: Path = options.out or RESULTS / form
    stored: dict[str, Any] = {
        "environment": provenance.describe_environment(),
        "device": options.device,
        "tiny": options.tiny,
        "checks": [],
    }
    if options.device == "cuda":
        stored["card"] = torch.cuda.get_device_name()
    for name in options.only or list(by_name):
        record = run_alone(by_name[name], options.device, options.tiny)
        stored["checks"].append(record)
        out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        print(f"{name}  ({record['seconds']} s)")
        for row in record["rows"]:
            print(f"    {format_row(row)}")
        if record["error"]:
            print(f"    FAILED: {' '.join(record['error'])}", flush=True)
    failed = [
        record["check"]
        for record in stored["checks"]
        if record["error"] or any(row.get("holds") is False for row in record["rows"])
    ]
    print(f"failed: {', '.join(failed)}" if failed else "all checks hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
