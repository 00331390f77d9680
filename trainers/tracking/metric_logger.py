"""The rows of metrics.jsonl, written by rank 0 while a run goes on, and what trackers are told.

Where the run's home is a store, they are uploaded too, for the driver and for whoever resumes the
run. A store has no appending, so files are copied whole: in a thread, every few seconds, and at
once before a checkpoint is sealed, so that no checkpoint is ahead of the metrics beside it.
"""

import contextlib
import json
import math
import shutil
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainers.storage.atomic import replace_file
from trainers.storage.filesystem import StoreError
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.sinks.sink import Point, TrackedRun, flatten_settings
from trainers.tracking.sinks.trackers import Trackers
from trainers.tracking.throughput import ThroughputMeter
from trainers.training.events import EvalEvent, StepEvent, WarningEvent

UPLOAD_SECONDS = 3.0  # between uploads
UPLOAD_SHARE = 0.05  # of the time, at most, for uploading ever larger files
STEP_SCALARS = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "tokens_per_second_per_device",
    "tflops_per_device",
    "mfu",
    "memory_gib",
    "padding_share",
)


class MetricLogger:
    """Writes metrics.jsonl, and tells the trackers.

    lost_steps: those computed after the checkpoint that the run resumes from, and computed again.
    lost_seconds: the time they took.
    """

    def __init__(
        self,
        run: RunDirectory,
        resumed_at: int,
        tracking: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
        meter: ThroughputMeter | None = None,
    ) -> None:
        """Open for appending, after dropping the rows of steps after `resumed_at`.

        What is no row of metrics is kept in a copy of the file. tracking: the trackers of the
        recipe. settings: the recipe's, nested, for the trackers. meter: adds columns to steps.
        """
        self._meter = meter
        self._run, self._step, self._succeeded = run, resumed_at, False
        self._lock = threading.Lock()  # trackers warn from their threads
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
        tracked = TrackedRun(run, resumed_at, flatten_settings(settings or {}))
        self._trackers = Trackers(tracking, tracked, self._log_warning)
        self._uploader = MetricUploader(run)

    def log_start(self, **facts: Any) -> None:
        """Write from which step, and with what, the run starts or resumes."""
        self._write_row("start", facts)

    def log_event(self, event: StepEvent | EvalEvent | WarningEvent) -> None:
        """Write an optimizer step, an evaluation or a warning."""
        self._step = event.step
        if isinstance(event, WarningEvent):
            self._log_warning(event.text)
            return
        if isinstance(event, EvalEvent):
            self._write_row("evaluation", asdict(event))
            self._track(event.step, "validation", event.metrics, tuple(event.metrics))
            return
        row = self._step_row(event)
        self._write_row("step", row)
        self._track(event.step, "train", row, STEP_SCALARS)

    def log_interruption(self, step: int) -> None:
        """Write that a machine is about to be reclaimed, and that `step` is saved."""
        self._write_row("notice", {"step": step})

    def log_conclusion(self, step: int) -> None:
        """Write that training is over, and that the test rows and the bundle come next."""
        self._write_row("conclusion", {"step": step})

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Tell the trackers how the run has ended: what result.json holds."""
        self._succeeded = True
        bundle = f"{self._run.address}/{self._run.bundle_path.name}"
        self._trackers.log_result(final_figures(result), bundle if result.get("test") else "")

    def upload_now(self) -> None:
        """Upload all rows to the run's home. Raises StoreError."""
        self._uploader.upload_now()

    def flush(self) -> None:
        """Write and upload all that was logged, before the run is said to have ended."""
        self._trackers.flush()
        self.upload_now()

    def close(self) -> None:
        """Flush, and upload for the last time."""
        self._trackers.close(self._succeeded)
        with self._lock:
            self._file.close()
        self._uploader.close()

    def _step_row(self, event: StepEvent) -> dict[str, Any]:
        row = asdict(event)
        memory = row.pop("memory_bytes")
        if memory:
            row["memory_gib"] = memory / 2**30
        row["tokens_per_second"] = event.tokens / event.seconds
        row["padding_share"] = 1 - event.tokens / event.computed_tokens
        return row if self._meter is None else row | self._meter.measure(event)

    def _track(self, step: int, part: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
        known = [name for name in names if _is_scalar(values.get(name))]
        scalars = {f"{part}/{name}": float(values[name]) for name in known}
        self._trackers.log_point(Point(step, time.time(), scalars))

    def _log_warning(self, text: str) -> None:
        """Write what the driver is to print, wherever it runs."""
        self._write_row("warning", {"step": self._step, "text": text})

    def _write_row(self, kind: str, row: dict[str, Any]) -> None:
        line = json.dumps({"kind": kind, **row, "time": time.time()}) + "\n"
        with self._lock:
            if not self._file.closed:  # a tracker that was left behind may still warn
                self._file.write(line)
                self._file.flush()


def final_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the single numbers of result.json as trackers name them: test/f1, run/steps."""
    parts = {"test": result.get("test") or {}, "best": result.get("validation") or {}}
    baselines = (result.get("verdict") or {}).get("baselines") or {}
    parts |= {f"baseline/{name}": values for name, values in baselines.items()}
    figures: dict[str, Any] = {f"run/{name}": result.get(name) for name in ("steps", "best_step")}
    for part, values in parts.items():
        figures |= {f"{part}/{name}": value for name, value in values.items()}
    return {name: float(value) for name, value in figures.items() if _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


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
