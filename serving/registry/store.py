"""Where a registry keeps its files: a directory, or a prefix in S3
(`trainers/storage/object_store.py`).

Two promises are all that a registry needs. `create` makes a file that was not there, whole, and of
several that try one wins; on a disk that is a hard link. And a listing shows every file created
before it. Nothing is ever overwritten. Knows no models.

    store = open_store("registry")      # or s3://models/registry
    store.create("_states/sentiment/00000001.json", data)
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from trainers.storage.atomic import written_aside
from trainers.storage.object_store import Absent, StoreError, reach


class Store(Protocol):
    """Files by relative path, as "a/b/c"."""

    @property
    def address(self) -> str:
        """What `open_store` takes to reach it, from any directory."""

    def files(self, folder: str) -> list[str]:
        """Paths of all files under `folder`, sorted; none where there is no such folder."""

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises Absent."""

    def create(self, path: str, data: bytes) -> bool:
        """Create a file; False where there is one already, unless it holds the same bytes.

        A write may succeed and its answer get lost, so that a second try meets its own file; data
        that no other writer has, by a random part of it, tells that apart.
        """

    def upload(self, source: Path, folder: str) -> None:
        """Copy a directory to `folder`, where nothing is and nobody else writes."""

    def download(self, folder: str, target: Path) -> None:
        """Copy the files of `folder` into the directory `target`."""

    def remove(self, folder: str) -> None:
        """Remove a folder and what is in it, or nothing where it is not there."""

    def local(self, folder: str) -> Path | None:
        """Where `folder` lies on a disk of this machine, if it does."""


def open_store(address: str) -> Store:
    """The store at `address`, a directory or a URL; nothing is read or created yet."""
    if address.startswith("file://"):
        return DirectoryStore(Path(address.removeprefix("file://")))
    if "://" in address:
        return reach(address)
    return DirectoryStore(Path(address).expanduser().absolute())


class DirectoryStore:
    """Files in a directory, which several machines may share. It appears when first written to."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def address(self) -> str:
        return str(self._root)

    def files(self, folder: str) -> list[str]:
        return sorted(self._walk(folder))

    def read(self, path: str) -> bytes:
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            raise Absent(f"{self._root / path}: no such file") from None
        except OSError as error:
            raise self._failed(path, "read", error) from None

    def create(self, path: str, data: bytes) -> bool:
        target = self._root / path
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            _write_through(aside, data)
            with contextlib.suppress(FileExistsError):
                os.link(aside, target)
                _sync(target.parent)
        except OSError as error:
            raise self._failed(path, "written", error) from None
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()
        return self.read(path) == data

    def upload(self, source: Path, folder: str) -> None:
        target = self._root / folder
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(target) as aside:
                shutil.copytree(source, aside, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise self._failed(folder, "written", error) from None

    def download(self, folder: str, target: Path) -> None:
        shutil.copytree(self._root / folder, target, dirs_exist_ok=True)

    def remove(self, folder: str) -> None:
        shutil.rmtree(self._root / folder, ignore_errors=True)

    def local(self, folder: str) -> Path | None:
        return self._root / folder

    def _walk(self, folder: str) -> Iterator[str]:
        """Paths of files below; without `stat`, of which a registry with a long past has many."""
        try:
            with os.scandir(self._root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue  # being written, or left of a write that was killed
                    if entry.is_dir():
                        yield from self._walk(f"{folder}/{entry.name}")
                    else:
                        yield f"{folder}/{entry.name}"
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(folder, "listed", error) from None

    def _failed(self, path: str, done: str, error: Exception) -> StoreError:
        reason = getattr(error, "strerror", None) or str(error)
        return StoreError(
            f"{self._root / path}: cannot be {done}: {reason}; a registry wants a directory with "
            "hard links, room, and your permission, or s3://BUCKET/PREFIX"
        )


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and the folders above it; returns when its bytes are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
