"""The planner against the world: every published row predicted without having seen it.

Constants are fitted anew for each accelerator, to the rows of all the others, so that no row, nor
any sibling of its accelerator, is among those that explain it. Energy is predicted from the other
meter's run. Also how long a plan over the whole catalogue takes, up to 4,096 devices.

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

from fitting import fitted, left_out, predicted
from published import DATA, Row, mlperf, serving, training

from cluster.costmodel.constants import CALIBRATED
from cluster.hardware import catalog, energy
from cluster.hardware.types import GIGA, Machine
from cluster.planning import demand
from cluster.planning.plan import plan

RESULTS = Path(__file__).parent / "results" / "planner.json"
TABLES = {"mlperf": mlperf, "training": training, "serving": serving}
RECIPES = ("bert-large-pretrain", "bert-base-pretrain", "imdb")


def main() -> int:
    """Predict, print, and keep."""
    options = _parse()
    hardware = catalog.load()
    rows = [row for read in TABLES.values() for row in read(hardware)]
    new = [
        row
        for name, read in TABLES.items()
        if getattr(options, name)
        for row in read(hardware, Path(getattr(options, name)))
    ]
    if new:  # rows kept aside: with the constants that the package ships
        _print(new, [predicted(row, CALIBRATED) for row in new])
        given = sum(len(_csv(getattr(options, name))) for name in TABLES if getattr(options, name))
        print(
            f"{given - len(new)} rows left out: no throughput, or an accelerator not in the tables"
        )
        return 0
    predictions = left_out(rows)
    _print(rows, predictions)
    shipped = fitted(rows)
    print("\nconstants fitted to all rows (cluster/costmodel/constants.py ships them):")
    for name, value in asdict(shipped).items():
        print(f"  {name:<18} {value:12.4g}   shipped {getattr(CALIBRATED, name):.4g}")
    record = {
        "rows": [_record(row, p) for row, p in zip(rows, predictions, strict=True)],
        "summary": summary(rows, predictions),
        "constants": asdict(shipped),
        "energy": _energy(rows, predictions, hardware),
        "plan_seconds": _latency(hardware),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {RESULTS}")
    return 0


def summary(rows: Sequence[Row], predictions: Sequence[float]) -> dict[str, dict[str, float]]:
    """Of each table and of all: how many, median, worst, shares within 10 and 20%.

    factor: within which nine in ten predictions lie, either way.
    """
    kinds = [*dict.fromkeys(row.kind for row in rows), "all"]
    found = {}
    for kind in kinds:
        pairs = [
            (p, row.seen)
            for row, p in zip(rows, predictions, strict=True)
            if kind in (row.kind, "all")
        ]
        errors = sorted(abs(p / seen - 1) for p, seen in pairs)
        factors = sorted(max(p / seen, seen / p) for p, seen in pairs)
        found[kind] = {
            "rows": len(pairs),
            "median": statistics.median(errors),
            "worst": errors[-1],
            "within_10": sum(e <= 0.1 for e in errors) / len(errors),
            "within_20": sum(e <= 0.2 for e in errors) / len(errors),
            "factor": factors[min(len(factors) - 1, int(0.9 * len(factors)))],
        }
    return found


def _print(rows: Sequence[Row], predictions: Sequence[float]) -> None:
    print(
        f"{'table':<9}{'row':<58}{'accelerator':<17}{'devices':>7}{'seen':>11}{'predicted':>11}"
        f"{'error':>8}"
    )
    for row, p in zip(rows, predictions, strict=True):
        print(
            f"{row.kind:<9}{row.name[:56]:<58}{row.accelerator:<17}{row.place.devices:>7}"
            f"{row.seen:>11,.1f}{p:>11,.1f}{p / row.seen - 1:>+8.1%}  {row.note}"
        )
    print()
    for kind, of in summary(rows, predictions).items():
        print(
            f"{kind:<9}{of['rows']:>4.0f} rows: median {of['median']:.1%}, worst "
            f"{of['worst']:.0%}, within 10% {of['within_10']:.0%}, within 20% "
            f"{of['within_20']:.0%}, nine in ten within a factor {of['factor']:.2f}"
        )


def _energy(
    rows: Sequence[Row], predictions: Sequence[float], hardware: catalog.Catalogue
) -> list[dict[str, float | str]]:
    """kWh of a run: power from the other meter's ratio, minutes from predicted throughput.

    Sequences until the target are those of other machines of 8 H100 with the same batch.
    """
    alike = [
        (row, p)
        for row, p in zip(rows, predictions, strict=True)
        if row.kind == "mlperf" and row.accelerator == "H100-SXM5-80GB" and row.place.devices == 8
    ]
    minutes = "minutes_to_0.720_mlm_acc(olympic mean)"
    times = {row["system"]: float(row[minutes]) for row in _csv(DATA / "mlperf_bert.csv")}
    needed = statistics.median(60 * times[row.name] * row.seen for row, _ in alike)
    speed = statistics.median(p for _, p in alike)
    measured = _csv(DATA / "bert_energy_measured.csv")
    node = Machine("8 x H100", hardware.accelerator("H100-SXM5-80GB"), 8, 400 * GIGA)
    found = []
    print("\nenergy of MLPerf runs on 8 H100, each from the other meter's power:")
    for row in measured:
        other = next(each for each in measured if each is not row)
        watts = energy.node_watts(node, 1.0, float(other["node_W/sum_TDP"]))
        kwh = energy.kilowatt_hours(watts, needed / speed)
        assert watts is not None and kwh is not None
        seen = float(row["kWh_per_run"])
        mean = float(row["mean_node_W_in_run"])
        print(
            f"  {row['meter']}: {mean:,.0f} W seen, {watts:,.0f} W predicted "
            f"({watts / mean - 1:+.1%}); {seen:.3f} kWh seen, {kwh:.3f} predicted "
            f"({kwh / seen - 1:+.1%})"
        )
        found.append({"meter": row["meter"], "watts": watts, "kwh": kwh, "seen_kwh": seen})
    return found


def _latency(hardware: catalog.Catalogue) -> dict[str, float]:
    """Seconds of a plan over all machines, up to 4,096 devices."""
    found = {}
    print("\nseconds of a plan over the whole catalogue, up to 4,096 devices:")
    for name in RECIPES:
        asked = demand.read(name)
        began = time.perf_counter()
        made = plan(asked, hardware)
        found[name] = time.perf_counter() - began
        print(f"  {name:<22}{found[name]:6.2f} s, {len(made.every)} offers")
    return found


def _record(row: Row, prediction: float) -> dict[str, Any]:
    return {
        "table": row.kind,
        "row": row.name,
        "accelerator": row.accelerator,
        "devices": row.place.devices,
        "seen": row.seen,
        "predicted": prediction,
        "error": prediction / row.seen - 1,
        "note": row.note,
    }


def _csv(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _parse(arguments: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in TABLES:
        parser.add_argument(
            f"--{name}", metavar="CSV", help=f"rows to predict with the shipped constants: {name}"
        )
    return parser.parse_args(None if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
