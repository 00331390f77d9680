"""A wait with a name: a line as it begins, and its seconds when it is over.

    with Wait("starting Ray"):
        ...

On a terminal it is one line with a spinner; anywhere else, as in the log of a job, two lines. Of
one that is over within a second the second line is left out.
"""

import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Self, TextIO

SPINNER = "|/-\\"
SPIN_SECONDS = 0.2
SHORTEST_SECONDS = 1.0
CLEAR_LINE = "\r\x1b[K"


class Wait:
    """Says what is waited for, from `begin` to `end`, or while its `with` block runs.

    stream: where lines go, and a spinner if it is a terminal; default: standard output.
    """

    def __init__(
        self,
        what: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._clock = what, clock
        self._stream = sys.stdout if stream is None else stream
        self._started: float | None = None
        self._over = threading.Event()
        self._spinner: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(failed=kind is not None)

    def begin(self) -> None:
        """Say that the wait begins."""
        self._started = self._clock()
        if self._stream.isatty():
            self._spinner = threading.Thread(target=self._spin, args=[self._started], daemon=True)
            self._spinner.start()
        else:
            print(f"{self._what} ...", file=self._stream, flush=True)

    def end(self, failed: bool = False) -> None:
        """Say how long it took, unless it has failed or was short. Do nothing a second time."""
        if self._started is None:
            return
        seconds, self._started = self._clock() - self._started, None
        if self._spinner is not None:
            self._over.set()
            self._spinner.join()
            self._stream.write(CLEAR_LINE)
        if seconds >= SHORTEST_SECONDS and not failed:
            print(f"{self._what}: {seconds:.0f}s", file=self._stream, flush=True)

    def _spin(self, started: float) -> None:
        for frame in itertools.cycle(SPINNER):
            seconds = self._clock() - started
            self._stream.write(f"{CLEAR_LINE}{frame} {self._what} ({seconds:.0f}s)")
            self._stream.flush()
            if self._over.wait(SPIN_SECONDS):
                return
