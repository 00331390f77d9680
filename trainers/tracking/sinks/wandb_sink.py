"""Weights & Biases: a run on its server, or with WANDB_MODE=offline in files for `wandb sync`.

A resumed run goes on in the same W&B run, whose id is kept in RUN/trackers/wandb.json. It is never
asked for a key on the terminal: without one the tracker is left out.
"""

import os
import uuid
from collections.abc import Mapping, Sequence

import wandb

from cluster.errors import BerthaError
from trainers.tracking.sinks.sink import PROJECT, Point, TrackedRun

STEP = "step"  # the axis of every chart


class WandbSink:
    """One W&B run: the recipe's settings as its config, metrics by step, figures as summary."""

    def __init__(self, run: TrackedRun) -> None:
        self._directory = run.directory
        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise BerthaError("no API key; set WANDB_API_KEY, or WANDB_MODE=offline")
        known = run.read_state("wandb").get("id")
        name = known if isinstance(known, str) else uuid.uuid4().hex[:12]
        if known is None:
            run.write_state("wandb", {"id": name})
        run.local_home.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(run.local_home),
            id=name,
            name=run.name,
            group=run.group or None,
            resume="allow" if mode == "online" else None,  # files have no run to go on with
            config=dict(run.settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # A resumed run computes some steps again. W&B's own counter never goes back and would drop
        # them, so ours is a metric, and the axis.
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log_points(self, points: Sequence[Point]) -> None:
        """Send scalars."""
        for point in points:
            self._run.log({**point.scalars, STEP: point.step})

    def log_result(self, figures: Mapping[str, float], bundle: str) -> None:
        """Send the figures and the bundle's address as the summary."""
        self._run.summary.update({**figures, "bundle": bundle})

    def flush(self) -> None:
        """Do nothing: W&B's own process writes at once."""

    def close(self, succeeded: bool) -> None:
        """Say how the run ended, and wait for what is on its way; keep files with the run."""
        self._run.finish(exit_code=0 if succeeded else 1)
        if self._directory.home:
            self._directory.publish_files("wandb")
