"""The rows of metrics.jsonl and the events of TensorBoard, written by rank 0 while a run goes on.

Where the run's home is a store, they are uploaded too, for the driver and for whoever resumes the
run. A store has no appending, so files are copied whole: in a thread, every few seconds, and at
once before a checkpoint is sealed, so that no checkpoint is ahead of the metrics beside it.
"""

import contextlib
import json
import shutil
import threading
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from trainers.storage.atomic import replace_file
from trainers.storage.filesystem import StoreError
from trainers.tracking.run_directory import RunDirectory
from trainers.training.events import EvalEvent, StepEvent

UPLOAD_SECONDS = 3.0  # between uploads
UPLOAD_SHARE = 0.05  # of the time, at most, for uploading ever larger files


class MetricLogger:
    """Writes metrics.jsonl and TensorBoard events.

    lost_steps: those computed after the checkpoint that the run resumes from, and computed again.
    lost_seconds: the time they took.
    """

    def __init__(self, run: RunDirectory, resumed_at: int) -> None:
        """Open for appending, after dropping the rows of steps after `resumed_at`.

        What is no row of metrics is kept in a copy of the file.
        """
        run.check_lease()
        rows, has_damage = run.read_rows()
        if has_damage:
            copy = run.metrics_path.with_name(f"metrics-damaged-{time.time_ns()}.jsonl")
            shutil.copyfile(run.metrics_path, copy)
            run.publish_files(copy.name)
            warnings.warn(
                f"skipping damaged lines of {run.metrics_path}: kept in {copy.name}", stacklevel=2
            )
        kept = [row for row in rows if row["step"] <= resumed_at]
        lost = [row for row in rows if row["kind"] == "step" and row["step"] > resumed_at]
        self.lost_steps = max([0, *(row["step"] - resumed_at for row in lost)])
        self.lost_seconds = float(sum(row["seconds"] for row in lost))
        replace_file(run.metrics_path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = run.metrics_path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=resumed_at + 1)
        self._uploader = MetricUploader(run)

    def log_start(self, **facts: Any) -> None:
        """Write from which step, and with what, the run starts or resumes."""
        self._write_row("start", facts)

    def log_event(self, event: StepEvent | EvalEvent) -> None:
        """Write an optimizer step or an evaluation."""
        if isinstance(event, EvalEvent):
            self._write_row("evaluation", asdict(event))
            for name, value in event.metrics.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"validation/{name}", value, event.step)
            return
        row = asdict(event)
        row["tokens_per_second"] = event.tokens / event.seconds
        row["padding_share"] = 1 - event.tokens / event.computed_tokens
        self._write_row("step", row)
        for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share"):
            self._events.add_scalar(f"train/{name}", row[name], event.step)

    def log_interruption(self, step: int) -> None:
        """Write that a machine is about to be reclaimed, and that `step` is saved."""
        self._write_row("notice", {"step": step})

    def upload_now(self) -> None:
        """Upload all rows to the run's home. Raises StoreError."""
        self._uploader.upload_now()

    def close(self) -> None:
        """Flush, and upload for the last time."""
        self._file.close()
        self._events.close()
        self._uploader.close()

    def _write_row(self, kind: str, row: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, **row, "time": time.time()}) + "\n")
        self._file.flush()


class MetricUploader:
    """Uploads the metrics of `run` to its home until it is closed; does nothing without a home."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._uploaded = run, dict[str, tuple[int, int]]()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._upload_regularly, daemon=True)
        if run.home:
            self._thread.start()

    def upload_now(self) -> None:
        """Upload the files that have changed. Raises StoreError."""
        if not self._run.home:
            return
        with self._lock:
            self._run.check_lease()
            for path in [self._run.metrics_path, *self._run.path.glob("tensorboard/*")]:
                self._upload_changed(path)

    def close(self) -> None:
        """Upload for the last time."""
        self._closed.set()
        if self._run.home:
            self._thread.join()
        self.upload_now()

    def _upload_changed(self, path: Path) -> None:
        stat, name = path.stat(), str(path.relative_to(self._run.path))
        state = (stat.st_mtime_ns, stat.st_size)
        if self._uploaded.get(name) != state:
            self._run.publish_files(name)
            self._uploaded[name] = state

    def _upload_regularly(self) -> None:
        wait = UPLOAD_SECONDS
        while not self._closed.wait(wait):
            started = time.monotonic()
            with contextlib.suppress(StoreError):  # tried again, and before a checkpoint it must go
                self.upload_now()
            wait = max(UPLOAD_SECONDS, (time.monotonic() - started) / UPLOAD_SHARE)
