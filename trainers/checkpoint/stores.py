"""Where the checkpoints of a run are stored: in a directory that all ranks see, or in a store.

A checkpoint is a directory, of which one file, the seal, lists all others. On a shared disk it is
written under a temporary name and renamed. A store cannot rename: there the seal is uploaded last,
and a directory without one does not count. Each machine then has a directory of its own for what
its ranks write before the upload and for the files they fetch, which are verified on arrival.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from trainers.storage import atomic
from trainers.storage.filesystem import NotFound, StoreError
from trainers.storage.store import Store

NAME = re.compile(
    r"step-(\d{8}|[1-9]\d{8,})"
)  # of a checkpoint; nothing else is ever changed or removed


def _allow_writing() -> None:
    """Do nothing: nobody else writes these checkpoints."""


@dataclass(frozen=True)
class CheckpointStore:
    """Checkpoints by name; all ranks have the same one.

    directory: that all ranks see, or where a store is given, of this machine and shared by its
    ranks. store: keeps the checkpoints in its folder of the directory's name. check_lease: raises
    StoreError where another process has the right to write them; called before each change.
    """

    directory: Path
    store: Store | None = None
    check_lease: Callable[[], None] = field(default=_allow_writing, compare=False)

    def __str__(self) -> str:
        if self.store is None:
            return str(self.directory)
        return f"{self.store.address}/{self.directory.name}"

    def list_names(self) -> list[str]:
        """List the names of all checkpoints, whole or not."""
        return [name for name in self._list_entries() if self._is_checkpoint(name)]

    def list_strangers(self) -> list[str]:
        """List the names of what looks like a checkpoint and is none, as a link to one."""
        names = [name for name in self._list_entries() if name.startswith("step-")]
        return [name for name in names if not self._is_checkpoint(name)]

    def create_staging(self, name: str) -> str:
        """Make room for a new checkpoint, on rank 0 alone; return the name of its staging."""
        self.check_lease()
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
            self.check_lease()
            self.store.put_file(directory / file, self._key(directory.name, file))

    def commit_staging(self, staging: str, name: str) -> None:
        """Make the checkpoint visible once its seal is stored, on rank 0 alone."""
        if self.store is None:  # else the seal, stored last, has made it visible
            self.check_lease()
            target = self.directory / name
            if os.path.lexists(target) and not self._is_checkpoint(name):
                # A file or a link in its place: not ours to remove, nor what the link points to.
                target.rename(target.with_name(f"{name}.moved-{uuid.uuid4().hex[:8]}"))
            atomic.commit_directory(self.directory / staging, target)

    def discard_staging(self, staging: str) -> None:
        """Remove what was written of a checkpoint that failed, on rank 0 alone: disks fill up."""
        shutil.rmtree(self.directory / staging, ignore_errors=True)

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
            # What a link points to can change after it was verified, and be of another run.
            links = (file for file in expected if (self.directory / name / file).is_symlink())
            link = next(links, None)
            if link is not None:
                return f"{link} is a symbolic link"
            return atomic.find_corruption(self.directory / name, expected)
        damages = (self._fetch_verified(name, file, digest) for file, digest in expected.items())
        return next((damage for damage in damages if damage is not None), None)

    def remove(self, name: str) -> None:
        """Remove a checkpoint."""
        self.check_lease()
        if self.store is None:
            shutil.rmtree(self.directory / name)
        else:
            self.store.remove(self._key(name))

    def remove_unsealed(self, seal: str) -> None:
        """Remove what killed processes left of checkpoints that have no file `seal`."""
        self.check_lease()
        if self.store is None:
            for leftover in self.directory.glob(".step-*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            return
        paths = self.store.list_files(self.directory.name)
        for name in {path.split("/")[1] for path in paths}:
            if NAME.fullmatch(name) and self._key(name, seal) not in paths:
                self.remove(name)

    def _list_entries(self) -> list[str]:
        if self.store is None:
            return sorted(path.name for path in self.directory.glob("[!.]*"))
        paths = self.store.list_files(self.directory.name)
        return sorted({path.split("/")[1] for path in paths})

    def _is_checkpoint(self, name: str) -> bool:
        path = self.directory / name
        is_directory = self.store is not None or (path.is_dir() and not path.is_symlink())
        return bool(NAME.fullmatch(name)) and is_directory

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
