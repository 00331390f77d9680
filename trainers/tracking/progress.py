"""What a person sees while a run goes on: the driver reads metrics.jsonl as it grows.

Workers may be on other machines and print nothing; one reader of the run directory, or of its home
in a store, keeps the screen clean and works the same under `ray job submit`.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO

from trainers.storage.object_store import Absent, ObjectStore, StoreError
from trainers.tracking.run_directory import RunDirectory

FAR_SECONDS = 2.0  # between looks at a file in a store


class Tail:
    """Reads the complete lines that a JSONL file gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._rest = ""

    def rows(self, last: bool = False) -> list[dict[str, Any]]:
        """The new rows. A file that was replaced is read from its last `start` row on."""
        replaced = self._file is not None and self._moved()
        if self._file is None or replaced:
            self.close()
            if not self._path.is_file():
                return []
            self._file = self._path.open(encoding="utf-8")
        *lines, self._rest = (self._rest * (not replaced) + self._file.read()).split("\n")
        rows = [json.loads(line) for line in lines]
        return _since_the_last_start(rows) if replaced else rows

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _moved(self) -> bool:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino


class FarTail:
    """Reads the complete lines that a JSONL file in a store gained since the last look.

    It is copied there whole, each time with more, or by another start with less.
    """

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store, self._path, self._seen = store, path, b""
        self._looked_at = 0.0

    def rows(self, last: bool = False) -> list[dict[str, Any]]:
        """The new rows; of a file with less, those from its last `start` row on.

        Looks now and then alone, unless it is for the last time.
        """
        if not last and time.monotonic() - self._looked_at < FAR_SECONDS:
            return []
        self._looked_at = time.monotonic()
        try:
            data = self._store.read(self._path)
        except Absent:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        grown = whole.startswith(self._seen)
        lines = whole[len(self._seen) * grown :].decode().splitlines()
        self._seen = whole
        rows = [json.loads(line) for line in lines]
        return rows if grown else _since_the_last_start(rows)

    def close(self) -> None:
        """Nothing is held open."""


def _since_the_last_start(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    starts = [index for index, row in enumerate(rows) if row["kind"] == "start"]
    return rows[starts[-1] :] if starts else []


class Follower:
    """Prints a line every few seconds while its `with` block runs.

    usd_per_hour: as of `start_line`.
    """

    def __init__(
        self,
        run: RunDirectory,
        usd_per_hour: float | None = None,
        say: Callable[[str], None] = print,
        every_seconds: float = 5.0,
    ) -> None:
        store = run.store
        self._tail = Tail(run.metrics) if store is None else FarTail(store, run.metrics.name)
        self._tail.rows()  # what an earlier start left
        self._say, self._every, self._price = say, every_seconds, usd_per_hour
        self._total_steps = 0
        self._pending: list[dict[str, Any]] = []
        self._said_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look(last=True)
        self._tail.close()

    def _follow(self) -> None:
        while not self._stop.wait(0.5):
            with contextlib.suppress(StoreError):  # the next look sees it all
                self._look()

    def _look(self, last: bool = False) -> None:
        for row in self._tail.rows(last):
            self._tell(row)
        now = time.monotonic()
        if self._pending and (last or now - self._said_at >= self._every):
            self._say(steps_line(self._pending, self._total_steps))
            self._said_at = now
            self._pending.clear()

    def _tell(self, row: dict[str, Any]) -> None:
        if row["kind"] == "start":
            self._total_steps = row["total_steps"]
            self._pending.clear()
            if row["step"] or row.get("lost_steps"):
                self._say(start_line(row, self._price))
        elif row["kind"] == "step":
            self._pending.append(row)
        elif row["kind"] == "notice":
            self._say(f"a machine is about to be taken away; step {row['step']} is saved")
        else:
            self._say(evaluation_line(row))


def encoding(
    say: Callable[[str], None] = print, every_seconds: float = 5.0
) -> Callable[[int, int], None]:
    """What to call with (texts encoded, of how many): says so every few seconds."""
    return _counting("encoding texts", say, every_seconds)


def asking(
    say: Callable[[str], None] = print, every_seconds: float = 5.0
) -> Callable[[int, int], None]:
    """What to call with (texts a teacher answered, of how many): says so every few seconds."""
    return _counting("asking the teacher", say, every_seconds)


def _counting(
    what: str, say: Callable[[str], None], every_seconds: float
) -> Callable[[int, int], None]:
    said_at = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= every_seconds:
            said_at = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    return tell


def steps_line(rows: list[dict[str, Any]], total_steps: int) -> str:
    """One line for the steps of `rows`: means, and the time left at their speed."""
    last = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    padding = 1 - tokens / sum(row["computed_tokens"] for row in rows)
    loss = sum(row["loss"] for row in rows) / len(rows)
    left = (total_steps - last["step"]) * seconds / len(rows)
    return (
        f"step {last['step']}/{total_steps}  loss {loss:.4f}  "
        f"learning rate {last['learning_rate']:.2e}  {tokens / seconds:,.0f} tokens/s  "
        f"padding {padding:.1%}  {duration(left)} left"
    )


def start_line(row: dict[str, Any], usd_per_hour: float | None = None) -> str:
    """One line for a start that is not the first, with what was lost.

    usd_per_hour: of all nodes together, where it is known.
    """
    line = f"going on from step {row['step']}"
    if "workers" in row:
        line += f" with {_counted(row['workers'], 'worker')}"
    lost = row.get("lost_steps", 0)
    if not lost:
        return line
    seconds = row.get("lost_seconds", 0.0)
    told = f"{_counted(lost, 'step')} lost, {duration(seconds)} of training"
    if usd_per_hour is not None:
        told += f" or ${seconds / 3600 * usd_per_hour:,.2f}"
    return f"{line} ({told})"


def evaluation_line(row: dict[str, Any]) -> str:
    """One line for an evaluation row."""
    best = "  best so far" if row["best"] else ""
    return f"step {row['step']}  validation: {figures(row['metrics'])}{best}"


def figures(metrics: dict[str, Any]) -> str:
    """The single numbers of `metrics` in words."""
    return "  ".join(
        f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float)
    )


def duration(seconds: float) -> str:
    """Seconds as 45s, 3m20s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
