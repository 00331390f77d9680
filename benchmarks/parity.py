"""Compare every layout with one process: the same five steps of a tiny BERT.

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
from tests.support.layouts import LAYOUTS, TASKS, Run, fresh_recipe, run_alone, run_layouts
from tests.support.tiny import write_corpus, write_tiny_bert
from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"


def largest_differences(runs: list[Run], expected: Run) -> dict[str, float]:
    """Return the largest differences of loss, gradient norm (relative) and weights."""
    events, weights = expected
    worst = {"loss": 0.0, "grad_norm": 0.0, "weights": 0.0}
    for rank_events, rank_weights in runs:
        for event, expected_event in zip(rank_events, events, strict=True):
            if "loss" in expected_event:
                norm = abs(event["grad_norm"] / expected_event["grad_norm"] - 1)
                worst["loss"] = max(worst["loss"], abs(event["loss"] - expected_event["loss"]))
                worst["grad_norm"] = max(worst["grad_norm"], norm)
        for name, value in rank_weights.items():
            worst["weights"] = max(worst["weights"], float(np.abs(value - weights[name]).max()))
    return worst


def main() -> None:
    """Run every layout, print the table, store the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=sorted(LAYOUTS))
    options = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        bert, corpus = write_tiny_bert(root / "bert"), write_corpus(root / "reviews.csv")
        recipes = {task: fresh_recipe(bert, corpus, task) for task in TASKS}
        alone = {task: run_alone(recipes[task], root / "cache") for task in TASKS}
        for size in options.ranks:
            names = [(name, task) for name in LAYOUTS[size] for task in TASKS]
            jobs = [(recipes[task], Layout(**LAYOUTS[size][name])) for name, task in names]
            out = root / f"ranks{size}"
            out.mkdir()
            results = run_layouts(jobs, size, root / "cache", out)
            for (name, task), runs in zip(names, results, strict=True):
                table.setdefault(name, {})[task] = largest_differences(runs, alone[task])
    print("| layout | task | loss | gradient norm | weights |\n|---|---|---|---|---|")
    for name, by_task in table.items():
        for task, worst in by_task.items():
            print(f"| {name} | {task} | " + " | ".join(f"{v:.0e}" for v in worst.values()) + " |")
    RESULTS.mkdir(exist_ok=True)
    stored = {"environment": provenance.describe_environment(), "largest_differences": table}
    (RESULTS / "parity.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
