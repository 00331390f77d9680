"""Where the checkpoints of a run lie: in a directory that all ranks see, or in a store.

A depot holds directories by name, of which one file, the seal, says what belongs to it. In a store
a directory is there when its seal is, which goes up last; each machine then has a directory of its
own for what its ranks write before that, and for what they fetch: only the files that they need,
verified once they have come. Knows no tensors.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from trainers.storage import atomic
from trainers.storage.object_store import Absent, ObjectStore, StoreError


class Depot(Protocol):
    """Directories by name. Whoever it is for, all ranks have the same; str() says where it is."""

    @property
    def directory(self) -> Path:
        """Where this machine has the directories, or the files of them that it fetched."""

    def names(self) -> list[str]:
        """The names of all directories, whole or not."""

    def begin(self, name: str) -> str:
        """Make room for a new directory; rank 0 alone calls this. What `aside` takes."""

    def aside(self, begun: str) -> Path:
        """The directory of this machine that this rank writes its files into."""

    def keep(self, aside: Path, file: str) -> None:
        """Take over a file that this rank has written there."""

    def reveal(self, begun: str, name: str) -> None:
        """Give the directory its name, its seal being kept; rank 0 alone calls this."""

    def read(self, name: str, file: str) -> bytes:
        """A small file. Raises OSError where it cannot be had."""

    def fetch(self, name: str, file: str, digest: str) -> None:
        """See to it that a file of that SHA-256 lies on this machine."""

    def flaw(self, name: str, expected: Mapping[str, str]) -> str | None:
        """The first file of `expected` (name to SHA-256) that is missing or altered, in words."""

    def remove(self, name: str) -> None:
        """Remove a directory."""

    def sweep(self, seal: str) -> None:
        """Remove what a kill left of directories before they had a seal of that name."""


@dataclass(frozen=True)
class OnDisk:
    """A directory that all ranks see."""

    directory: Path

    def __str__(self) -> str:
        return str(self.directory)

    def names(self) -> list[str]:
        return [path.name for path in self.directory.glob("[!.]*") if path.is_dir()]

    def begin(self, name: str) -> str:
        return atomic.begin(self.directory / name).name

    def aside(self, begun: str) -> Path:
        return self.directory / begun

    def keep(self, aside: Path, file: str) -> None:
        """It lies where it is kept."""

    def reveal(self, begun: str, name: str) -> None:
        atomic.reveal(self.directory / begun, self.directory / name)

    def read(self, name: str, file: str) -> bytes:
        return (self.directory / name / file).read_bytes()

    def fetch(self, name: str, file: str, digest: str) -> None:
        """It is here."""

    def flaw(self, name: str, expected: Mapping[str, str]) -> str | None:
        return atomic.flaw(self.directory / name, expected)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.directory / name)

    def sweep(self, seal: str) -> None:
        for leftover in self.directory.glob(".*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)


@dataclass(frozen=True)
class InStore:
    """A folder of a store. directory: of this machine, shared by its ranks."""

    store: ObjectStore
    folder: str
    directory: Path

    def __str__(self) -> str:
        return f"{self.store.address}/{self.folder}"

    def names(self) -> list[str]:
        return sorted({path.split("/")[1] for path in self.store.files(self.folder)})

    def begin(self, name: str) -> str:
        self.remove(name)
        return name

    def aside(self, begun: str) -> Path:
        # What lies here of others has been uploaded, and would fill the disk.
        for other in self.directory.glob("*"):
            if other.name != begun:
                shutil.rmtree(other, ignore_errors=True)
        own = self.directory / begun
        own.mkdir(parents=True, exist_ok=True)
        return own

    def keep(self, aside: Path, file: str) -> None:
        self.store.put(aside / file, f"{self.folder}/{aside.name}/{file}")

    def reveal(self, begun: str, name: str) -> None:
        """Its seal has revealed it."""

    def read(self, name: str, file: str) -> bytes:
        try:
            return self.store.read(f"{self.folder}/{name}/{file}")
        except Absent as error:
            raise FileNotFoundError(str(error)) from None

    def fetch(self, name: str, file: str, digest: str) -> None:
        """Raises StoreError where it is missing or altered."""
        damage = self._fetched(name, file, digest)
        if damage is not None:
            raise StoreError(f"{self}/{name}: {damage}")

    def flaw(self, name: str, expected: Mapping[str, str]) -> str | None:
        found = (self._fetched(name, file, digest) for file, digest in expected.items())
        return next((damage for damage in found if damage is not None), None)

    def remove(self, name: str) -> None:
        self.store.remove(f"{self.folder}/{name}")

    def sweep(self, seal: str) -> None:
        held = self.store.files(self.folder)
        for name in {path.split("/")[1] for path in held}:
            if f"{self.folder}/{name}/{seal}" not in held:
                self.remove(name)

    def _fetched(self, name: str, file: str, digest: str) -> str | None:
        """Fetch a file that this machine lacks; what is wrong with it."""
        here = self.directory / name
        here.mkdir(parents=True, exist_ok=True)
        with FileLock(here / f".{file}.lock"):  # ranks of this machine read the same
            if atomic.flaw(here, {file: digest}) is None:
                return None
            try:
                self.store.get(f"{self.folder}/{name}/{file}", here / file)
            except Absent:
                return f"{file} is missing"
            return atomic.flaw(here, {file: digest})
