"""The rows of metrics.jsonl and the events of TensorBoard, written while a run goes on.

Rank 0 alone has a recorder.
"""

import json
import time
from dataclasses import asdict
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from trainers.storage.atomic import write_file
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.uploader import Publishing
from trainers.training.events import Evaluation, Step


class Recorder:
    """Writes metrics.jsonl and TensorBoard events while a run goes on.

    lost_steps: that were computed beyond the checkpoint it goes on from, and are computed again.
    lost_seconds: that they took.
    """

    def __init__(self, run: RunDirectory, resumed_at: int) -> None:
        """Open for appending; rows after step `resumed_at` belong to a lost future and go."""
        rows = list(run.rows())
        kept = [row for row in rows if row["step"] <= resumed_at]
        lost = [row for row in rows if row["kind"] == "step" and row["step"] > resumed_at]
        self.lost_steps = max([0, *(row["step"] - resumed_at for row in lost)])
        self.lost_seconds = float(sum(row["seconds"] for row in lost))
        write_file(run.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = run.metrics.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=resumed_at + 1)
        self._publishing = Publishing(run)

    def start(self, **facts: Any) -> None:
        """A row that says from which step, and with what, the run goes on."""
        self._write("start", facts)

    def record(self, event: Step | Evaluation) -> None:
        """A row of what happened."""
        if isinstance(event, Step):
            self.step(event)
        else:
            self.evaluation(event)

    def step(self, step: Step) -> None:
        """A row of one optimizer step."""
        row = asdict(step)
        row["tokens_per_second"] = step.tokens / step.seconds
        row["padding_share"] = 1 - step.tokens / step.computed_tokens
        self._write("step", row)
        for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share"):
            self._events.add_scalar(f"train/{name}", row[name], step.step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """A row of one evaluation."""
        self._write("evaluation", asdict(evaluation))
        for name, value in evaluation.metrics.items():
            if isinstance(value, float):
                self._events.add_scalar(f"validation/{name}", value, evaluation.step)

    def notice(self, step: int) -> None:
        """A row that says that a machine is about to leave, and that `step` is saved."""
        self._write("notice", {"step": step})

    def publish(self) -> None:
        """See to it that all rows are where the run lives."""
        self._publishing.now()

    def close(self) -> None:
        """Flush everything."""
        self._lines.close()
        self._events.close()
        self._publishing.close()

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._lines.write(json.dumps({"kind": kind, **row, "time": time.time()}) + "\n")
        self._lines.flush()
