"""What rank 0 records is published while a run goes on, where the run lives in a store.

The driver reads it there, and whoever goes on with the run. A store has no appending, so files are
copied whole: in a thread, every few seconds, and at once before a checkpoint is sealed, so that no
checkpoint knows more than the records beside it.
"""

import contextlib
import threading
import time
from pathlib import Path

from trainers.storage.object_store import StoreError
from trainers.tracking.run_directory import RunDirectory

EVERY_SECONDS = 3.0
SHARE = 0.05  # of the time, at most, for copying ever larger files


class Publishing:
    """Copies the records of `run` to its home until it is closed; nothing where it has none."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._published = run, dict[str, tuple[int, int]]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        if run.home:
            self._thread.start()

    def now(self) -> None:
        """Copy what has changed. Raises StoreError."""
        if not self._run.home:
            return
        with self._lock:
            for path in [self._run.metrics, *self._run.path.glob("tensorboard/*")]:
                self._copy(path)

    def close(self) -> None:
        """Copy what has changed for the last time."""
        self._over.set()
        if self._run.home:
            self._thread.join()
        self.now()

    def _copy(self, path: Path) -> None:
        stat, name = path.stat(), str(path.relative_to(self._run.path))
        state = (stat.st_mtime_ns, stat.st_size)
        if self._published.get(name) != state:
            self._run.publish(name)
            self._published[name] = state

    def _go_on(self) -> None:
        wait = EVERY_SECONDS
        while not self._over.wait(wait):
            started = time.monotonic()
            with contextlib.suppress(StoreError):  # it is tried again, and a checkpoint insists
                self.now()
            wait = max(EVERY_SECONDS, (time.monotonic() - started) / SHARE)
