"""The lease on a search whose files are kept in a store: one process writes its journal at a time.

The journal is written on this machine and copied to the store after each line. Whoever opened the
search last holds the lease, so a machine that died blocks nobody, and one that was only thought
dead notices at its next line, before anybody can see that line.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.storage.directory import SyncedDirectory
from trainers.storage.store import is_url
from tuning.store.config import PLAN
from tuning.store.reader import JOURNAL, RESULT, JournalError

LEASE = "holder"  # the file that names the process


@contextmanager
def open_study_directory(address: str) -> Iterator[SyncedDirectory]:
    """Yield the search at a path, or a temporary copy of that at a URL with its files fetched."""
    if not is_url(address):
        yield SyncedDirectory(Path(address))
        return
    with SyncedDirectory.open_temporary(address) as run:
        run.check_access()
        run.fetch_files(PLAN, JOURNAL, RESULT)
        yield run


class StudyLease:
    """Copies the journal of `run` home, if it has one, while this process holds the lease."""

    def __init__(self, run: SyncedDirectory) -> None:
        self._run, self._owner = run, uuid.uuid4().hex
        if run.home:
            run.write_shared(LEASE, self._owner)

    def __call__(self) -> None:
        """Publish a new line. Raises JournalError where another process took the lease."""
        if not self._run.home:
            return
        if self._run.read_file(LEASE) != self._owner.encode():
            raise JournalError(f"{self._run.address}: another process goes on with this search")
        self._run.publish_files(JOURNAL)
