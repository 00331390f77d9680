"""The training run that is disturbed on hosts, and its reference: the losses of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

TOLERANCE = 2e-5  # of a loss: sums of fp32 in another order
ALONE = {"cluster_name": "alone", "provider": {"type": "local", "head_ip": "127.0.0.1"}}


def recipe_arguments(steps: int, evaluated_every: int, saved_every: int) -> list[str]:
    """Return a recipe: one layer of real weights, with dropout, whose masks must be the same."""
    return [
        "reviews.yaml",
        "model.layers=[0]",
        "model.attention_dropout=0.1",
        "batch.token_budget=256",
        "precision=fp32",
        f"stopping.max_steps={steps}",
        "stopping.patience=null",
        f"evaluation.every_steps={evaluated_every}",
        f"checkpoints.every_steps={saved_every}",
    ]


def metric_rows(metrics: str, kind: str) -> list[dict[str, Any]]:
    """Parse the rows of a kind in the text of metrics.jsonl, complete lines only."""
    found: list[dict[str, Any]] = [json.loads(line) for line in metrics.split("\n")[:-1]]
    return [row for row in found if row["kind"] == kind]


def step_losses(metrics: str) -> list[float]:
    """Return the loss of each step."""
    return [row["loss"] for row in metric_rows(metrics, "step")]


def train_alone(recipe: list[str], place: Path) -> list[float]:
    """Train the same recipe in one process on this machine; return its losses."""
    alone = ALONE | {"metadata": {"devices_per_node": 0, "cache": str(place / "cache")}}
    (place / "alone.yaml").write_text(yaml.safe_dump(alone))
    where = ["--cluster", str(place / "alone.yaml"), "--run", str(place / "alone")]
    subprocess.run(
        [sys.executable, "-m", "trainers", *recipe, *where],
        check=True,
        capture_output=True,
        cwd=ROOT,
        timeout=600,
    )
    return step_losses((place / "alone" / "metrics.jsonl").read_text())
