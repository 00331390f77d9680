"""A directory that is kept on a disk, or in a store while machines work on disks of their own.

Which of the two decides `home`, and nobody else asks: `publish` and `fetch` do nothing where all
machines see the directory anyway. Knows not what is in it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from trainers.storage.atomic import write_file
from trainers.storage.object_store import Absent, ObjectStore, reach


@dataclass(frozen=True)
class Directory:
    """A directory by its path, and by the URL where its files are kept, if that is elsewhere.

    home: that URL; path is then this machine's own. "": all machines see path.
    """

    path: Path
    home: str = ""

    @classmethod
    def at(cls, address: Path | str, cache: Path) -> Self:
        """What a path or a URL names. cache: a directory of this machine."""
        if "://" not in str(address):
            return cls(Path(address).resolve())
        home = str(address).rstrip("/")
        return cls(cache / "runs" / hashlib.sha256(home.encode()).hexdigest()[:16], home)

    @property
    def address(self) -> str:
        """What names it to its user."""
        return self.home or str(self.path)

    @property
    def store(self) -> ObjectStore | None:
        """Its home. Raises StoreError for a URL of unknown kind."""
        return reach(self.home) if self.home else None

    def probe(self) -> None:
        """Raise StoreError where its home cannot be written to, before anything depends on it."""
        if self.store is not None:
            self.store.probe()

    def publish(self, *names: str) -> None:
        """Bring its home, if it has one, up to what files and directories of these names are here.

        One after another; a file that is not here goes there, too.
        """
        store = self.store
        if store is None:
            return
        for name in names:
            path = self.path / name
            if path.is_dir():
                store.upload(path, name)
            elif path.is_file():
                store.write(name, path.read_bytes())  # at once: it may be growing
            else:
                store.remove(name)

    def fetch(self, *names: str) -> None:
        """Bring files of these names up to what they are at its home, if it has one."""
        store = self.store
        if store is None:
            return
        for name in names:
            try:
                store.get(name, self.path / name)
            except Absent:
                (self.path / name).unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """A file as everybody sees it; None where there is none."""
        try:
            return (self.path / name).read_bytes() if self.store is None else self.store.read(name)
        except (FileNotFoundError, Absent):
            return None

    def leave(self, name: str, text: str) -> None:
        """Replace a file, for everybody to see."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / name, text)
        self.publish(name)
