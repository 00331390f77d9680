"""Measure the planner: predict each published row by constants fitted without its accelerator.

Energy is predicted from the other meter's run. Also times a plan over the whole catalog, up to
4,096 devices.

    python benchmarks/planner.py                   # prints, and writes results/planner.json
    python benchmarks/planner.py --mlperf more.csv # rows of your own, of the same columns
"""

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fitting import fit_constants, predict_left_out, predict_throughput
from published import DATA, PublishedRow, read_mlperf, read_serving, read_training

from cluster.costmodel.constants import CALIBRATED
from cluster.hardware import catalog, run_cost
from cluster.hardware.types import GIGA, Machine
from cluster.planning.plan import plan_hardware
from trainers.planning.workload import load_workload

RESULTS = Path(__file__).parent / "results" / "planner.json"
TABLES = {"mlperf": read_mlperf, "training": read_training, "serving": read_serving}
RECIPES = ("bert-large-pretrain", "bert-base-pretrain", "imdb")


def main() -> int:
    """Predict every row, print the errors and write the results."""
    options = _parse_args()
    hardware = catalog.load_catalog()
    rows = [row for read in TABLES.values() for row in read(hardware)]
    new = [
        row
        for name, read in TABLES.items()
        if getattr(options, name)
        for row in read(hardware, Path(getattr(options, name)))
    ]
    if new:  # held-out rows: with the constants that the package ships
        _print_errors(new, [predict_throughput(row, CALIBRATED) for row in new])
        num_given = sum(
            len(_read_csv(getattr(options, name))) for name in TABLES if getattr(options, name)
        )
        print(
            f"{num_given - len(new)} rows left out: no throughput, or an accelerator not in the "
            "tables"
        )
        return 0
    predictions = predict_left_out(rows)
    _print_errors(rows, predictions)
    shipped = fit_constants(rows)
    print("\nconstants fitted to all rows (cluster/costmodel/constants.py ships them):")
    for name, value in asdict(shipped).items():
        print(f"  {name:<18} {value:12.4g}   shipped {getattr(CALIBRATED, name):.4g}")
    record = {
        "rows": [_row_as_json(row, p) for row, p in zip(rows, predictions, strict=True)],
        "summary": summarize_errors(rows, predictions),
        "constants": asdict(shipped),
        "energy": _predict_energy(rows, predictions, hardware),
        "plan_seconds": _time_plans(hardware),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {RESULTS}")
    return 0


def summarize_errors(
    rows: Sequence[PublishedRow], predictions: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return the errors of each table and of all: median, worst, shares within 10 and 20%.

    factor: nine in ten predictions lie within it, either way.
    """
    kinds = [*dict.fromkeys(row.kind for row in rows), "all"]
    summary = {}
    for kind in kinds:
        pairs = [
            (p, row.throughput)
            for row, p in zip(rows, predictions, strict=True)
            if kind in (row.kind, "all")
        ]
        errors = sorted(abs(p / seen - 1) for p, seen in pairs)
        factors = sorted(max(p / seen, seen / p) for p, seen in pairs)
        summary[kind] = {
            "rows": len(pairs),
            "median": statistics.median(errors),
            "worst": errors[-1],
            "within_10": sum(e <= 0.1 for e in errors) / len(errors),
            "within_20": sum(e <= 0.2 for e in errors) / len(errors),
            "factor": factors[min(len(factors) - 1, int(0.9 * len(factors)))],
        }
    return summary


def _print_errors(rows: Sequence[PublishedRow], predictions: Sequence[float]) -> None:
    print(
        f"{'table':<9}{'row':<58}{'accelerator':<17}{'devices':>7}{'seen':>11}{'predicted':>11}"
        f"{'error':>8}"
    )
    for row, p in zip(rows, predictions, strict=True):
        print(
            f"{row.kind:<9}{row.name[:56]:<58}{row.accelerator:<17}{row.topology.devices:>7}"
            f"{row.throughput:>11,.1f}{p:>11,.1f}{p / row.throughput - 1:>+8.1%}  {row.note}"
        )
    print()
    for kind, errors in summarize_errors(rows, predictions).items():
        print(
            f"{kind:<9}{errors['rows']:>4.0f} rows: median {errors['median']:.1%}, worst "
            f"{errors['worst']:.0%}, within 10% {errors['within_10']:.0%}, within 20% "
            f"{errors['within_20']:.0%}, nine in ten within a factor {errors['factor']:.2f}"
        )


def _predict_energy(
    rows: Sequence[PublishedRow], predictions: Sequence[float], hardware: catalog.Catalog
) -> list[dict[str, float | str]]:
    """Predict the kWh of a run: power by the other meter, minutes by the predicted throughput.

    Sequences until the target are those of other machines of 8 H100 with the same batch.
    """
    alike = [
        (row, p)
        for row, p in zip(rows, predictions, strict=True)
        if row.kind == "mlperf"
        and row.accelerator == "H100-SXM5-80GB"
        and row.topology.devices == 8
    ]
    minutes = "minutes_to_0.720_mlm_acc(olympic mean)"
    times = {row["system"]: float(row[minutes]) for row in _read_csv(DATA / "mlperf_bert.csv")}
    needed = statistics.median(60 * times[row.name] * row.throughput for row, _ in alike)
    speed = statistics.median(p for _, p in alike)
    measured = _read_csv(DATA / "bert_energy_measured.csv")
    node = Machine("8 x H100", hardware.get_accelerator("H100-SXM5-80GB"), 8, 400 * GIGA)
    results: list[dict[str, float | str]] = []
    print("\nenergy of MLPerf runs on 8 H100, each from the other meter's power:")
    for row in measured:
        other = next(each for each in measured if each is not row)
        watts = run_cost.node_watts(node, 1.0, float(other["node_W/sum_TDP"]))
        kwh = run_cost.kilowatt_hours(watts, needed / speed)
        assert watts is not None and kwh is not None
        seen = float(row["kWh_per_run"])
        mean = float(row["mean_node_W_in_run"])
        print(
            f"  {row['meter']}: {mean:,.0f} W seen, {watts:,.0f} W predicted "
            f"({watts / mean - 1:+.1%}); {seen:.3f} kWh seen, {kwh:.3f} predicted "
            f"({kwh / seen - 1:+.1%})"
        )
        results.append({"meter": row["meter"], "watts": watts, "kwh": kwh, "seen_kwh": seen})
    return results


def _time_plans(hardware: catalog.Catalog) -> dict[str, float]:
    """Time a plan over all machines, up to 4,096 devices, in seconds."""
    seconds = {}
    print("\nseconds of a plan over the whole catalog, up to 4,096 devices:")
    for name in RECIPES:
        workload = load_workload(name)
        start = time.perf_counter()
        plan = plan_hardware(workload, hardware)
        seconds[name] = time.perf_counter() - start
        print(f"  {name:<22}{seconds[name]:6.2f} s, {len(plan.offers)} offers")
    return seconds


def _row_as_json(row: PublishedRow, prediction: float) -> dict[str, Any]:
    return {
        "table": row.kind,
        "row": row.name,
        "accelerator": row.accelerator,
        "devices": row.topology.devices,
        "seen": row.throughput,
        "predicted": prediction,
        "error": prediction / row.throughput - 1,
        "note": row.note,
    }


def _read_csv(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _parse_args(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in TABLES:
        parser.add_argument(
            f"--{name}", metavar="CSV", help=f"rows to predict with the shipped constants: {name}"
        )
    return parser.parse_args(None if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
