"""How far a long task is, on the standard error: one line that changes, or one now and then."""

import sys
import time
from typing import Self, TextIO

from trainers.tracking.progress import format_duration

TERMINAL_SECONDS, FILE_SECONDS = 0.5, 10.0  # between two lines


class RowProgress:
    """Says how many rows are done, how fast, and how long the rest takes, in its `with` block.

    On a terminal one line is replaced; a log file gets a line every ten seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._on_terminal = self._stream.isatty()
        self._every = TERMINAL_SECONDS if self._on_terminal else FILE_SECONDS
        self._started = self._said_at = time.monotonic()
        self._line = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._line and self._on_terminal:
            self._stream.write("\n")
            self._stream.flush()

    def announce(self, what: str) -> None:
        """Say on a terminal what is done before there are rows to count."""
        if self._on_terminal:
            self._say(f"{what} …")

    def update(self, done: int, total: int) -> None:
        """Say that `done` of `total` rows are done, if it is time to."""
        now = time.monotonic()
        if now - self._said_at >= self._every or (done >= total and self._line):
            self._said_at = now
            self._say(format_progress(done, total, now - self._started))

    def _say(self, line: str) -> None:
        if self._on_terminal:
            self._stream.write("\r" + line.ljust(len(self._line)))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
        self._line = line


def format_progress(done: int, total: int, seconds: float) -> str:
    """Format how far it is after so many seconds."""
    rate = done / seconds if seconds else 0.0
    said = f"{done:,} of {total:,} rows, {rate:,.0f}/s"
    return f"{said}, {format_duration((total - done) / rate)} left" if 0 < done < total else said
