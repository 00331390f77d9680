"""A search that lives in a store, while one process holds it.

Its journal is written on this machine and copied to the store after each line. Whoever opened the
search last holds it: a machine that is gone leaves no lock behind, and one that was only thought
gone finds out at its next line, before anything of it can be seen. Knows no journal's contents.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from trainers.storage.directory import Directory
from tuning.store.config import PLAN
from tuning.store.reader import JOURNAL, RESULT, JournalError

HOLDER = "holder"


@contextmanager
def at_hand(address: str) -> Iterator[Directory]:
    """The search that a path or a URL names; of one in a store, its files are fetched."""
    if "://" not in address:
        yield Directory(Path(address))
        return
    home = address.rstrip("/")
    with TemporaryDirectory(prefix="bertha-") as place:
        run = Directory(Path(place, home.rpartition("/")[2]), home)
        run.path.mkdir()
        run.probe()
        run.fetch(PLAN, JOURNAL, RESULT)
        yield run


class Holder:
    """Copies the journal of `run` to its home, if it has one, while this process holds it."""

    def __init__(self, run: Directory) -> None:
        self._run, self._name = run, uuid.uuid4().hex
        if run.home:
            run.leave(HOLDER, self._name)

    def __call__(self) -> None:
        """A line was written. Raises JournalError where another process holds the search by now."""
        if not self._run.home:
            return
        if self._run.read(HOLDER) != self._name.encode():
            raise JournalError(f"{self._run.address}: another process goes on with this search")
        self._run.publish(JOURNAL)
