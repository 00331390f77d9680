"""The lines a user sees while a run goes on: the driver follows metrics.jsonl as it grows.

Workers may be on other machines and print nothing; one reader of the run directory, or of its home
in a store, keeps the screen clean and works the same under `ray job submit`.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from trainers.storage.filesystem import StoreError
from trainers.tracking.metric_rows import Row, parse_rows
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.verdict_lines import (
    IN_SHORT,
    format_classes,
    format_figures,
    format_sentences,
    format_slices,
    split_figures,
)
from trainers.tracking.wait import Wait

REMOTE_POLL_SECONDS = 2.0  # between reads of a file in a store
CONCLUSION = "evaluating the test rows and writing the bundle"


class MetricTail:
    """Reads the complete lines that were appended to the metrics of a run since the last read.

    A store knows no offsets, so there the file is read whole each time. A restart of the run
    replaces the file by one with fewer lines.
    """

    def __init__(self, run: RunDirectory) -> None:
        # _seen: of a store, all that was read; of a disk, the line that ends at _offset.
        self._run, self._seen, self._offset, self._read_at = run, b"", 0, 0.0

    def read_rows(self, last: bool = False) -> list[Row]:
        """Return the new rows; of a file that was replaced, those from its last `start` row on.

        Damaged lines are skipped; the next start warns of them. Reads a store only every
        REMOTE_POLL_SECONDS, unless it is for the last time.
        """
        waited = time.monotonic() - self._read_at
        if self._run.home and not last and waited < REMOTE_POLL_SECONDS:
            return []
        self._read_at = time.monotonic()
        data, is_continued = self._read_store() if self._run.home else self._read_disk()
        rows = list(parse_rows(data))
        return rows if is_continued else _rows_since_start(rows)

    def _read_store(self) -> tuple[bytes, bool]:
        """Return new complete lines, and whether they continue those that were read before."""
        data = self._run.read_file(self._run.metrics_path.name)
        if data is None:
            return b"", True
        whole = data[: data.rfind(b"\n") + 1]
        is_continued = whole.startswith(self._seen)
        new = whole[len(self._seen) * is_continued :]
        self._seen = whole
        return new, is_continued

    def _read_disk(self) -> tuple[bytes, bool]:
        """Do the same without reading what was read before: a long run has a long file."""
        try:
            with self._run.metrics_path.open("rb") as file:
                file.seek(self._offset - len(self._seen))
                data = file.read()
                # Every row has its time, so the last one that was read tells the file from another.
                is_continued = data.startswith(self._seen)
                if not is_continued:
                    file.seek(0)
                    data, self._seen, self._offset = file.read(), b"", 0
        except FileNotFoundError:
            return b"", True
        new = data[len(self._seen) : data.rfind(b"\n") + 1]
        if new:
            self._offset += len(new)
            self._seen = new[new.rfind(b"\n", 0, -1) + 1 :]
        return new, is_continued


def _rows_since_start(rows: list[Row]) -> list[Row]:
    starts = [index for index, row in enumerate(rows) if row["kind"] == "start"]
    return rows[starts[-1] :] if starts else []


class ProgressPrinter:
    """Prints a line every few seconds while its `with` block runs.

    usd_per_hour: as of `format_start`. start: the wait until the run computes, which begins with
    the block.
    """

    def __init__(
        self,
        run: RunDirectory,
        usd_per_hour: float | None = None,
        say: Callable[[str], None] = print,
        every_seconds: float = 5.0,
        start: Wait | None = None,
    ) -> None:
        self._start, self._conclusion = start, Wait(CONCLUSION)
        self._tail = MetricTail(run)
        self._tail.read_rows()  # skips the rows of earlier starts
        self._say, self._every, self._usd_per_hour = say, every_seconds, usd_per_hour
        self._total_steps, self._metric = 0, ""
        self._pending: list[Row] = []
        self._printed_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll_rows, daemon=True)

    def __enter__(self) -> Self:
        if self._start is not None:
            self._start.begin()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._print_new_rows(last=True)
        finally:
            self._conclusion.end(failed=kind is not None)
            if self._start is not None:
                self._start.end(failed=True)

    def _poll_rows(self) -> None:
        while not self._stop.wait(0.5):
            with contextlib.suppress(StoreError):  # the next read gets the same rows
                self._print_new_rows()

    def _print_new_rows(self, last: bool = False) -> None:
        for row in self._tail.read_rows(last):
            self._handle_row(row)
        if last or time.monotonic() - self._printed_at >= self._every:
            self._print_pending()

    def _print_pending(self) -> None:
        if self._pending:
            self._say(format_steps(self._pending, self._total_steps))
            self._printed_at = time.monotonic()
            self._pending.clear()

    def _handle_row(self, row: Row) -> None:
        if row["kind"] == "start":
            if self._start is not None:
                self._start.end()
            self._total_steps = row["total_steps"]
            self._metric = row.get("metric", "")
            self._pending.clear()
            if row["step"] or row.get("lost_steps"):
                self._say(format_start(row, self._usd_per_hour))
        elif row["kind"] == "step":
            self._pending.append(row)
        elif row["kind"] == "notice":
            self._say(f"a machine is about to be reclaimed; step {row['step']} is saved")
        elif row["kind"] == "warning":
            self._say(row["text"])
        elif row["kind"] == "conclusion":
            self._print_pending()
            self._conclusion.begin()
        elif row["kind"] == "evaluation":
            self._say(format_evaluation(row, self._metric))


def count_printer(
    what: str, say: Callable[[str], None] = print, every_seconds: float = 5.0
) -> Callable[[int, int], None]:
    """Return a callback for (done, total) that prints `what` and both, every few seconds.

    A total of 0 is not known yet, while rows are read.
    """
    printed_at = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= every_seconds:
            printed_at = time.monotonic()
            say(f"{what}: {done:,} of {total:,}" if total else f"reading rows: {done:,} so far")

    return on_progress


def format_steps(rows: list[dict[str, Any]], total_steps: int) -> str:
    """Format steps as one line: means, and the time left at their speed.

    MFU where it is known, else FLOP/s; memory where the device says it; padding where there is any.
    """
    last = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    padding = 1 - tokens / sum(row["computed_tokens"] for row in rows)
    loss = sum(row["loss"] for row in rows) / len(rows)
    left = (total_steps - last["step"]) * seconds / len(rows)
    mfu, tflops = _mean_over_time(rows, "mfu"), _mean_over_time(rows, "tflops_per_device")
    parts = [
        f"step {last['step']}/{total_steps}",
        f"loss {loss:.4f}",
        f"learning rate {last['learning_rate']:.2e}",
        f"{tokens / seconds:,.0f} tokens/s",
        f"MFU {mfu:.1%}" if mfu else _format_flops(tflops),
        f"{last['memory_gib']:.1f} GiB" if "memory_gib" in last else "",
        f"padding {padding:.1%}" if padding >= 0.0005 else "",
        f"{format_duration(left)} left",
    ]
    return "  ".join(filter(None, parts))


def _format_flops(tflops: float) -> str:
    """Format the FLOP/s of a device in a unit that leaves few zeros; "" for none."""
    if not tflops:
        return ""
    text = f"{tflops:.3g} T" if tflops >= 1 else f"{1000 * tflops:.3g} G"
    return f"{text}FLOP/s a device"


def _mean_over_time(rows: list[dict[str, Any]], name: str) -> float:
    """Return the mean of a rate over the seconds of the steps that have it; 0.0 where none has."""
    known = [row for row in rows if name in row]
    total = sum(row[name] * row["seconds"] for row in known)
    return float(total / sum(row["seconds"] for row in known)) if known else 0.0


def format_start(row: dict[str, Any], usd_per_hour: float | None = None) -> str:
    """Format a start that is not the first as one line, with what was lost.

    usd_per_hour: of all nodes together, where it is known.
    """
    line = f"resuming from step {row['step']}"
    if "workers" in row:
        line += f" with {_pluralize(row['workers'], 'worker')}"
    lost = row.get("lost_steps", 0)
    if not lost:
        return line
    seconds = row.get("lost_seconds", 0.0)
    cost = f"{_pluralize(lost, 'step')} lost, {format_duration(seconds)} of training"
    if usd_per_hour is not None:
        cost += f" or ${seconds / 3600 * usd_per_hour:,.2f}"
    return f"{line} ({cost})"


def format_evaluation(row: dict[str, Any], metric: str = "") -> str:
    """Format an evaluation row as one line. metric: that chooses the best checkpoint."""
    best = "  best so far" if row.get("best") else ""
    return f"step {row['step']}  validation: {format_metrics(row['metrics'], metric)}{best}"


def format_metrics(metrics: dict[str, Any], metric: str = "") -> str:
    """Format the single numbers of `metrics`, but for those that few want and are not `metric`."""
    return "  ".join(
        f"{name} {value:.4f}"
        for name, value in metrics.items()
        if isinstance(value, float) and (name == metric or name not in IN_SHORT)
    )


def format_duration(seconds: float) -> str:
    """Format seconds as 45s, 3m20s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _pluralize(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def summarize_run(result: dict[str, Any], seconds: float, run: str) -> list[str]:
    """Format the result of a run: its steps, test metrics, and where the bundle is."""
    test, verdict = result["test"], result.get("verdict") or {}
    early = ", stopped early" if result["stopped_early"] else ""
    took = format_duration(seconds)
    lines = [f"{result['steps']} steps in {took}{early}; best at {result['best_step']}"]
    if test:
        counted = "rows" if "rows" in test else "tokens"
        what = "rows" if counted == "rows" else "hidden tokens of texts"
        lines.append(f"held out, {test[counted]} {what} never trained on:")
        figures = {name: value for name, value in test.items() if isinstance(value, float)}
        lines += format_figures(*split_figures(figures, verdict))
        lines += format_classes(test.get("per_class", {}))
        lines += format_slices(verdict)
    lines += format_sentences(verdict, run)
    lines.append(f"bundle: {run}/bundle")
    return lines
