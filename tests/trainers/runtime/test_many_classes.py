"""A run of 1,000 classes: what its end needs of memory, and leaves on the disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.models.card import MAX_CARD_BYTES

CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
import torch
from trainers.evaluation.intervals import Answers, bootstrap_intervals
from trainers.tracking.plots import TestRows, draw_plots
from trainers.tracking.run_directory import RunDirectory
from trainers.training.metrics import MetricAccumulator, for_result, without_tables

directory, classes, rows = Path(sys.argv[1]), int(sys.argv[2]), 8000
source = np.random.default_rng(0)
targets = source.integers(0, classes, rows)
logits = source.normal(size=(rows, classes)).astype(np.float32)
logits[np.arange(rows), targets] += 3
labels = tuple(f"class {n}" for n in range(classes))
RunDirectory(directory).metrics_path.write_text("")
draw_plots(RunDirectory(directory), "f1", labels[:2], {"confusion": [[1, 2], [3, 4]], "rows": 10})
bootstrap_intervals(Answers("classification", logits[:, :2], targets % 2))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
found = MetricAccumulator("classification", classes)
for start in range(0, rows, 500):
    part = slice(start, start + 500)
    found.add_batch(torch.from_numpy(logits[part]), torch.from_numpy(targets[part]))
metrics = found.compute_metrics(labels)
bootstrap_intervals(Answers("classification", logits, targets))
test = TestRows("classification", logits, targets)
draw_plots(RunDirectory(directory), "f1", labels, for_result(metrics), test)
sizes = [len(json.dumps(each, indent=2)) for each in (
    for_result(metrics), without_tables(metrics), without_tables(metrics, 10_000))]
print(json.dumps({"bytes": peak() - before, "sizes": sizes}))
"""


@pytest.mark.slow
def test_a_thousand_classes_need_little_memory_and_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path), "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    # The logits alone are 32 MB; as a matrix, the picture of 500 classes took 18 GB.
    assert found["bytes"] < 600e6
    result, evaluation, card = found["sizes"]
    assert result < 1e6 and evaluation < 1_000 and card < MAX_CARD_BYTES / 4
    assert (tmp_path / "plots" / "confusion.png").is_file()
