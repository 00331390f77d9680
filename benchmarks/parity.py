"""How far any layout is from one process: the same five steps of a tiny BERT, side by side.

AdamW, every dropout on, clipping that bites, global batches of 13; gloo processes, fp32. The table
gives the largest difference over all steps and ranks.

    python benchmarks/parity.py
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster.costmodel.layout import Layout
from tests.support.layouts import LAYOUTS, TASKS, Run, fresh, run_alone, run_layouts
from tests.support.tiny import write_corpus, write_tiny_bert
from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"


def difference(found: list[Run], expected: Run) -> dict[str, float]:
    """The largest differences of loss, gradient norm (relative) and weights from one process."""
    events, weights = expected
    worst = {"loss": 0.0, "grad_norm": 0.0, "weights": 0.0}
    for of_rank, held in found:
        for event, wanted in zip(of_rank, events, strict=True):
            if "loss" in wanted:
                norm = abs(event["grad_norm"] / wanted["grad_norm"] - 1)
                worst["loss"] = max(worst["loss"], abs(event["loss"] - wanted["loss"]))
                worst["grad_norm"] = max(worst["grad_norm"], norm)
        for name, value in held.items():
            worst["weights"] = max(worst["weights"], float(np.abs(value - weights[name]).max()))
    return worst


def main() -> None:
    """Run every layout, print the table, store the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=sorted(LAYOUTS))
    options = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        bert, corpus = write_tiny_bert(place / "bert"), write_corpus(place / "reviews.csv")
        recipes = {task: fresh(bert, corpus, task) for task in TASKS}
        alone = {task: run_alone(recipes[task], place / "cache") for task in TASKS}
        for size in options.ranks:
            names = [(name, task) for name in LAYOUTS[size] for task in TASKS]
            jobs = [(recipes[task], Layout(**LAYOUTS[size][name])) for name, task in names]
            out = place / f"ranks{size}"
            out.mkdir()
            runs = run_layouts(jobs, size, place / "cache", out)
            for (name, task), found in zip(names, runs, strict=True):
                table.setdefault(name, {})[task] = difference(found, alone[task])
    print("| layout | task | loss | gradient norm | weights |\n|---|---|---|---|---|")
    for name, of_tasks in table.items():
        for task, worst in of_tasks.items():
            print(f"| {name} | {task} | " + " | ".join(f"{v:.0e}" for v in worst.values()) + " |")
    RESULTS.mkdir(exist_ok=True)
    stored = {"environment": provenance.environment(), "largest_differences": table}
    (RESULTS / "parity.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
