"""The directory of a search, and the right to write it: one process writes a journal at a time.

The lease is that of `trainers.storage.lease`. In a store, which cannot append, the journal is
written on this machine and copied there after each line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainers.storage.directory import SyncedDirectory
from trainers.storage.lease import Lease, hold_lease
from trainers.storage.store import is_url
from tuning.store.config import PLAN
from tuning.store.reader import JOURNAL, RESULT


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


@dataclass(frozen=True)
class SearchLease:
    """The right of this process to write the search in `run`."""

    run: SyncedDirectory
    lease: Lease

    def check_held(self) -> None:
        """Raise LeaseError where another process has taken the search over."""
        self.lease.check_held()

    def publish_journal(self) -> None:
        """Copy the journal to the store, if the search is in one."""
        self.run.publish_files(JOURNAL)


@contextmanager
def hold_search(run: SyncedDirectory) -> Iterator[SearchLease]:
    """Hold the lease on a search while the block runs. Raises LeaseError where another does."""
    with hold_lease(run) as lease:
        run.fetch_files(JOURNAL, RESULT)  # the last holder may have gone on since they were fetched
        yield SearchLease(run, lease)
