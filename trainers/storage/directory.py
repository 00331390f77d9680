"""A directory that all machines see, or that each has a copy of while its home is a store.

`home` alone decides which: `publish_files` and `fetch_files` do nothing without one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from trainers.storage.atomic import replace_file
from trainers.storage.filesystem import NotFound
from trainers.storage.store import LocalStore, Store, is_url, open_store


@dataclass(frozen=True)
class SyncedDirectory:
    """A directory by its path, and by the URL of the store that keeps its files, if one does.

    home: that URL; path is then this machine's own. "": all machines see path.
    """

    path: Path
    home: str = ""

    @classmethod
    def from_address(cls, address: Path | str, cache: Path) -> Self:
        """Return the directory of a path or a URL. cache: a directory of this machine."""
        if not is_url(str(address)):
            return cls(Path(address).resolve())
        home = str(address).rstrip("/")
        return cls(cache / "runs" / hashlib.sha256(home.encode()).hexdigest()[:16], home)

    @classmethod
    @contextmanager
    def open_temporary(cls, url: str) -> Iterator[Self]:
        """Yield the directory of a URL with an empty local copy, removed at the end."""
        home = url.rstrip("/")
        with TemporaryDirectory(prefix="bertha-") as parent:
            # Two names, because a bundle is called after its run, which is the folder above it.
            path = Path(parent, *Path(home).parts[-2:])
            path.mkdir(parents=True)
            yield cls(path, home)

    @property
    def address(self) -> str:
        """The URL or path that its user gave."""
        return self.home or str(self.path)

    @property
    def store(self) -> Store:
        """The store that keeps the files. Raises StoreError for a URL of unknown kind."""
        return open_store(self.home) if self.home else LocalStore(self.path)

    def check_access(self) -> None:
        """Raise StoreError where the home cannot be written to, before anything depends on it."""
        if self.home:
            self.store.check_access()

    def publish_files(self, *names: str) -> None:
        """Copy files and directories of these names home, one after another.

        A file that is not here is removed there.
        """
        if not self.home:
            return
        store = self.store
        for name in names:
            path = self.path / name
            if path.is_dir():
                store.upload_directory(path, name)
            elif path.is_file():
                store.write_bytes(name, path.read_bytes())  # in one read: it may be growing
            else:
                store.remove(name)

    def fetch_files(self, *names: str) -> None:
        """Copy files of these names from home; one that is not there is removed here."""
        if not self.home:
            return
        store = self.store
        for name in names:
            try:
                store.get_file(name, self.path / name)
            except NotFound:
                (self.path / name).unlink(missing_ok=True)

    def read_file(self, name: str) -> bytes | None:
        """Read a file as all machines see it; None where there is none."""
        try:
            return self.store.read_bytes(name)
        except NotFound:
            return None

    def write_shared(self, name: str, text: str) -> None:
        """Replace a file, for all machines to see."""
        replace_file(self.path / name, text)
        self.publish_files(name)
