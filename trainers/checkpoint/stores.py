"""Where the checkpoints of a run are stored: in a directory that all ranks see, or in a store.

A checkpoint is a directory, of which one file, the seal, lists all others. On a shared disk it is
written under a temporary name and renamed. A store cannot rename: there the seal is uploaded last,
and a directory without one does not count. Each machine then has a directory of its own for what
its ranks write before the upload and for the files they fetch, which are verified on arrival.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from trainers.storage import atomic
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import Store


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints by name; all ranks have the same one.

    directory: that all ranks see, or where a store is given, of this machine and shared by its
    ranks. store: keeps the checkpoints in its folder of the directory's name.
    """

    directory: Path
    store: Store | None = None

    def __str__(self) -> str:
        if self.store is None:
            return str(self.directory)
        return f"{self.store.address}/{self.directory.name}"

    def list_names(self) -> list[str]:
        """List the names of all checkpoints, whole or not."""
        if self.store is None:
            return [path.name for path in self.directory.glob("[!.]*") if path.is_dir()]
        paths = self.store.list_files(self.directory.name)
        return sorted({path.split("/")[1] for path in paths})

    def create_staging(self, name: str) -> str:
        """Make room for a new checkpoint, on rank 0 alone; return the name of its staging."""
        if self.store is None:
            return atomic.create_temporary(self.directory / name).name
        self.remove(name)  # the seal of an older one would vouch for new files
        return name

    def staging_directory(self, staging: str) -> Path:
        """Return the directory of this machine that this rank writes its files into."""
        own = self.directory / staging
        if self.store is not None:
            # Older checkpoints here have been uploaded, and would fill the disk.
            for other in self.directory.glob("*"):
                if other != own:
                    shutil.rmtree(other, ignore_errors=True)
            own.mkdir(parents=True, exist_ok=True)
        return own

    def store_file(self, directory: Path, file: str) -> None:
        """Upload a file that this rank has written into its staging directory."""
        if self.store is not None:
            self.store.put_file(directory / file, self._key(directory.name, file))

    def commit_staging(self, staging: str, name: str) -> None:
        """Make the checkpoint visible once its seal is stored, on rank 0 alone."""
        if self.store is None:  # else the seal, stored last, has made it visible
            atomic.commit_directory(self.directory / staging, self.directory / name)

    def read_file(self, name: str, file: str) -> bytes:
        """Read a small file. Raises OSError or StoreError where it cannot be read."""
        if self.store is None:
            return (self.directory / name / file).read_bytes()
        try:
            return self.store.read_bytes(self._key(name, file))
        except NotFound as error:
            raise FileNotFoundError(str(error)) from None

    def fetch_file(self, name: str, file: str, digest: str) -> None:
        """Copy a file to this machine, unless it is there. Raises StoreError where it differs."""
        if self.store is not None:
            damage = self._fetch_verified(name, file, digest)
            if damage is not None:
                raise StoreError(f"{self}/{name}: {damage}")

    def find_corruption(self, name: str, expected: Mapping[str, str]) -> str | None:
        """Describe the first file of `expected` (name to SHA-256) that is missing or altered."""
        if self.store is None:
            return atomic.find_corruption(self.directory / name, expected)
        damages = (self._fetch_verified(name, file, digest) for file, digest in expected.items())
        return next((damage for damage in damages if damage is not None), None)

    def remove(self, name: str) -> None:
        """Remove a checkpoint."""
        if self.store is None:
            shutil.rmtree(self.directory / name)
        else:
            self.store.remove(self._key(name))

    def remove_unsealed(self, seal: str) -> None:
        """Remove what killed processes left of checkpoints that have no file `seal`."""
        if self.store is None:
            for leftover in self.directory.glob(".*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            return
        paths = self.store.list_files(self.directory.name)
        for name in {path.split("/")[1] for path in paths}:
            if self._key(name, seal) not in paths:
                self.remove(name)

    def _key(self, *names: str) -> str:
        return "/".join((self.directory.name, *names))

    def _fetch_verified(self, name: str, file: str, digest: str) -> str | None:
        """Fetch a file that this machine lacks; describe what is wrong with it."""
        assert self.store is not None
        local = self.directory / name
        local.mkdir(parents=True, exist_ok=True)
        with FileLock(local / f".{file}.lock"):  # ranks of this machine need the same files
            if atomic.find_corruption(local, {file: digest}) is None:
                return None
            try:
                self.store.get_file(self._key(name, file), local / file)
            except NotFound:
                return f"{file} is missing"
            return atomic.find_corruption(local, {file: digest})
