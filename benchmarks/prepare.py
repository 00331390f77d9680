"""Memory and time of preparing data sets of growing size, from a JSONL file to encoded splits.

A child process for each task and size makes its own file of that many rows of 20 to 60 words,
prepares it, and says how much memory it took at most: before it prepared (Python and libraries) and
in the end. What the difference grows by from size to size is what a row costs.

    python benchmarks/prepare.py --rows 100000 1000000     # writes results/prepare.json
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results" / "prepare.json"
TASKS = ("classification", "multi-label", "regression", "masked-lm")
CLASSES = {"classification": 100, "multi-label": 1000}
WORDS = (20, 60)
MIB = 1 << 20

Record = dict[str, Any]


def write_rows(path: Path, task: str, num_rows: int) -> None:
    """Write a JSONL file of distinct texts, with labels that `task` reads."""
    draw = random.Random(0)
    words = [f"{first}{last}" for first in ("good", "slow", "warm", "late") for last in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            text = " ".join(draw.choices(words, k=draw.randint(*WORDS)))
            file.write(json.dumps({"text": f"{row} {text}", "label": _draw_label(task, draw)}))
            file.write("\n")


def _draw_label(task: str, draw: random.Random) -> Any:
    if task == "regression":
        return draw.gauss(0, 1)
    if task == "multi-label":
        return [f"class {draw.randrange(CLASSES[task])}" for _ in range(draw.randint(0, 2))]
    return f"class {draw.randrange(CLASSES['classification'])}"


def peak_memory() -> int:
    """Return the most bytes this process has had in memory since it began."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Phases:
    """Times the two phases by the reports of progress."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.read = self.started

    def note(self, done: int, total: int) -> None:
        """Note a report; see `prepare.Progress`."""
        if not total:
            self.read = time.monotonic()


def measure(task: str, num_rows: int, place: Path) -> Record:
    """Make the rows in `place`, prepare them, and return the measures."""
    from trainers.config import recipe as recipes
    from trainers.data.prepare import load_recipe_encoder, prepare_dataset

    source = place / "rows.jsonl"
    write_rows(source, task, num_rows)
    settings = {
        "task": task,
        "model": {"name": "package:all-minilm-l6-v2"},
        "data": {"source": str(source)},
    }
    recipe = recipes.parse_recipe(settings)
    load_recipe_encoder(recipe).encode(["a text"])
    before, phases = peak_memory(), Phases()
    data = prepare_dataset(recipe, place / "cache", phases.note)
    ended, after = time.monotonic(), peak_memory()
    seconds = ended - phases.started
    return {
        "task": task,
        "rows": num_rows,
        "source_mib": source.stat().st_size / MIB,
        "cache_mib": sum(each.stat().st_size for each in (place / "cache").rglob("*")) / MIB,
        "tokens": len(data.train.samples.values),
        "libraries_mib": before / MIB,
        "peak_mib": after / MIB,
        "seconds": seconds,
        "reading_seconds": phases.read - phases.started,
        "rows_per_second": num_rows / seconds,
    }


def measure_in_child(task: str, num_rows: int, place: Path | None) -> Record:
    """Measure in a process of its own; place: a directory with room, None: the system's."""
    with tempfile.TemporaryDirectory(prefix="bertha-prepare-", dir=place) as directory:
        command = [sys.executable, __file__, "--child", task, str(num_rows), directory]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def add_growth(records: list[Record]) -> None:
    """Write into each record the bytes a row more than the next smaller size of its task took."""
    for record in records:
        smaller = [
            each
            for each in records
            if each["task"] == record["task"] and each["rows"] < record["rows"]
        ]
        if smaller:
            last = max(smaller, key=lambda each: int(each["rows"]))
            more = (record["peak_mib"] - last["peak_mib"]) * MIB
            record["bytes_per_row"] = more / (record["rows"] - last["rows"])


def main() -> int:
    """Measure every task and size, print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["classification"])
    parser.add_argument("--place", type=Path, help="a directory with room for the files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=3, metavar=("TASK", "ROWS", "PLACE"), help="used inside")
    options = parser.parse_args()
    if options.child:
        task, rows, place = options.child
        print(json.dumps(measure(task, int(rows), Path(place))))
        return 0
    records: list[Record] = []
    print("| task | rows | source MiB | libraries MiB | peak MiB | seconds | rows/s |")
    print("|---|---|---|---|---|---|---|")
    for task in options.tasks:
        for rows in sorted(options.rows):
            row = measure_in_child(task, rows, options.place)
            records.append(row)
            print(
                f"| {task} | {rows:,} | {row['source_mib']:,.0f} | {row['libraries_mib']:,.0f} "
                f"| {row['peak_mib']:,.0f} | {row['seconds']:,.1f} "
                f"| {row['rows_per_second']:,.0f} |",
                flush=True,
            )
    add_growth(records)
    record = {
        "environment": provenance.describe_environment(),
        "revision": provenance.code_revision(),
        "rows": records,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
