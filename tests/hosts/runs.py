"""The run that is disturbed on hosts, and what it must come to: the losses of one process alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from hosts import ROOT

STEPS, CUT_AFTER, SAVED_EVERY = 60, 24, 8
RECIPE = [
    "reviews.yaml",
    "model.layers=[0]",
    "model.attention_dropout=0.1",
    "batch.token_budget=256",
    "precision=fp32",
    f"stopping.max_steps={STEPS}",
    "stopping.patience=null",
    "evaluation.every_steps=30",
    f"checkpoints.every_steps={SAVED_EVERY}",
]
TOLERANCE = 2e-5  # of a loss: sums of fp32 in another order
HERE = {"cluster_name": "alone", "provider": {"type": "local", "head_ip": "127.0.0.1"}}


def rows(metrics: str, kind: str) -> list[dict[str, Any]]:
    """Rows of a kind in the text of metrics.jsonl, whole lines only."""
    found: list[dict[str, Any]] = [json.loads(line) for line in metrics.split("\n")[:-1]]
    return [row for row in found if row["kind"] == kind]


def losses(metrics: str) -> list[float]:
    """The loss of each step."""
    return [row["loss"] for row in rows(metrics, "step")]


def undisturbed(place: Path) -> list[float]:
    """The losses of the same recipe in one process on this machine."""
    alone = HERE | {"metadata": {"devices_per_node": 0, "cache": str(place / "cache")}}
    (place / "alone.yaml").write_text(yaml.safe_dump(alone))
    where = ["--cluster", str(place / "alone.yaml"), "--run", str(place / "alone")]
    subprocess.run(
        [sys.executable, "-m", "trainers", *RECIPE, *where],
        check=True,
        capture_output=True,
        cwd=ROOT,
        timeout=600,
    )
    return losses((place / "alone" / "metrics.jsonl").read_text())
