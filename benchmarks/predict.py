"""Compare how fast a file is predicted with how fast the engine computes its texts.

In turns, round after round: the engine alone, a process a core of one thread on texts that were
encoded beforehand (`ceiling.py`); `bertha predict` in one process; and the same over a Ray of this
machine, an actor a core. Rates are of the steady part: starting Ray and loading models is reported
beside them.

    python benchmarks/predict.py --rounds 3 --rows 4096

Writes benchmarks/results/predict.json.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
from ceiling import compute_in_processes
from texts import sample_texts

from serving.batch.cluster import predict_on_cluster
from serving.batch.predict import OnProgress, load_on_all_cores, predict_files
from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"
ROWS = ("engine", "one process", "actor pool")


class SteadyRate:
    """Rows a second between the first and the last report of progress."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._reports: list[tuple[float, int]] = []

    def update(self, done: int, total: int) -> None:
        """Note a report."""
        self._reports.append((time.monotonic(), done))

    @property
    def rows_per_second(self) -> float:
        """The rate after the first report, until when models are loaded."""
        (first, before), (last, after) = self._reports[0], self._reports[-1]
        return (after - before) / (last - first)

    @property
    def start_seconds(self) -> float:
        """Seconds until the first report."""
        return self._reports[0][0] - self._started


def write_rows(path: Path, num_rows: int) -> list[str]:
    """Write a CSV of short and long texts in turns; return its first texts."""
    both = zip(sample_texts("short"), sample_texts("long"), strict=True)
    texts = [text for pair in both for text in pair]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows([row, texts[row % len(texts)]] for row in range(num_rows))
    return texts[:num_rows]


def measure_file(predict: Callable[[OnProgress], Any]) -> dict[str, float]:
    """Measure one way to predict a file."""
    rate = SteadyRate()
    predict(rate.update)
    return {"rows_per_second": rate.rows_per_second, "start_seconds": rate.start_seconds}


def run_rounds(
    bundle: Path, place: Path, rounds: int, num_rows: int
) -> dict[str, list[dict[str, float]]]:
    """Measure all rows of the table in rounds."""
    texts, cores = write_rows(place / "rows.csv", num_rows), len(os.sched_getaffinity(0))
    rows, out = [str(place / "rows.csv")], str(place / "answers.csv")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    seconds = 10.0
    for number in range(rounds):
        turn = compute_in_processes(bundle, "torch fp32", texts, cores, seconds)
        found["engine"].append({"rows_per_second": turn["requests_per_second"]})
        found["one process"].append(
            measure_file(
                lambda report: predict_files(
                    load_on_all_cores(bundle), rows, out, overwrite=True, on_progress=report
                )
            )
        )
        found["actor pool"].append(
            measure_file(
                lambda report: predict_on_cluster(
                    bundle, rows, out, address="local", overwrite=True, on_progress=report
                )
            )
        )
        print(f"round {number + 1} of {rounds}", flush=True)
    return found


def summarize(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return medians by row, and the ratio to the engine's rate of the same round."""
    table = {}
    for name, turns in found.items():
        ratios = [
            turn["rows_per_second"] / engine["rows_per_second"]
            for turn, engine in zip(turns, found["engine"], strict=True)
        ]
        table[name] = {
            "rows_per_second": statistics.median(turn["rows_per_second"] for turn in turns),
            "of_the_engine": statistics.median(ratios),
            "start_seconds": statistics.median(turn.get("start_seconds", 0.0) for turn in turns),
        }
    return table


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4096)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bertha-") as name:
        place = Path(name)
        bundle = bundles.copy_without_engines(None, place / "predict" / "bundle")
        found = run_rounds(bundle, place, options.rounds, options.rows)
    table = summarize(found)
    record = {
        "environment": provenance.describe_environment(),
        "revision": provenance.code_revision(),
        "rows": options.rows,
        "turns": found,
        "table": table,
    }
    RESULTS.joinpath("predict.json").write_text(json.dumps(record, indent=2) + "\n")
    for name, row in table.items():
        print(f"{name:<12} {row['rows_per_second']:8.1f} rows/s  {row['of_the_engine']:6.1%}")


if __name__ == "__main__":
    main()
