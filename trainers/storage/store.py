"""Stores: files by relative path, in a directory or in S3 (or whatever else fsspec reaches).

Every store keeps two promises. A file appears whole or not at all, and of several writers that
create the same file exactly one wins. `s3://` needs the `aws` extra.

    store = open_store("s3://models/registry")      # or a directory
    store.create_file("_states/sentiment/00000001.json", data)
"""

import contextlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainers.storage.atomic import atomic_file, fsync_path
from trainers.storage.filesystem import (
    PERMISSIONS,
    WAYS_OUT,
    NotFound,
    StoreError,
    client_errors,
    resolve_filesystem,
)

CONFLICT_RETRIES = 20  # of a conditional write while another one of the same key is under way


class Store(ABC):
    """Files by relative path, as "a/b/c"."""

    address: str  # what `open_store` takes to reach this store, from any directory

    @abstractmethod
    def list_files(self, folder: str) -> list[str]:
        """List the paths of all files under `folder`, sorted; [] where there is no such folder."""

    @abstractmethod
    def read_bytes(self, path: str) -> bytes:
        """Read a file. Raises NotFound."""

    @abstractmethod
    def write_bytes(self, path: str, data: bytes) -> None:
        """Create or replace a file."""

    @abstractmethod
    def create_file(self, path: str, data: bytes) -> bool:
        """Create a file; return False where one exists already, unless it holds the same bytes.

        A write may succeed and its answer get lost, so that the retry meets its own file. A caller
        that must tell its file from another writer's puts something random into `data`.
        """

    @abstractmethod
    def put_file(self, source: Path, path: str) -> None:
        """Copy a file of this machine, which nobody writes to meanwhile, to `path`.

        Raises NotFound where there is no such file here.
        """

    @abstractmethod
    def get_file(self, path: str, target: Path) -> None:
        """Copy a file to `target` on this machine, replaced in one step. Raises NotFound."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, or a folder and all in it; do nothing where there is none."""

    def upload_directory(self, source: Path, folder: str) -> None:
        """Copy a directory of this machine to `folder`."""
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            self.put_file(path, f"{folder}/{path.relative_to(source).as_posix()}")

    def download_directory(self, folder: str, target: Path) -> None:
        """Copy the files of `folder` into the directory `target` of this machine.

        Raises StoreError for a name that leads out of it, before anything is copied.
        """
        prefix = f"{folder}/" if folder else ""
        names = [path.removeprefix(prefix) for path in self.list_files(folder)]
        # A key of S3 may be any text, as "../../.bashrc".
        strange = [n for n in names if n.startswith("/") or ".." in n.split("/") or "\0" in n]
        if strange:
            raise StoreError(
                f"{self.address}/{folder}: holds {strange[0][:80]!r}, which leads out of the "
                "directory that it is copied to; remove it there"
            )
        for name in names:
            self.get_file(prefix + name, target / name)

    def check_access(self) -> None:
        """Raise StoreError where files cannot be written, read and removed."""
        path = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(path, b"")
        self.read_bytes(path)
        self.remove(path)


def is_url(address: str) -> bool:
    """Return whether an address is a URL, and no path."""
    return "://" in address


def open_store(address: str) -> Store:
    """Return the store at a directory or a URL; nothing is read or created yet.

    Raises StoreError for a URL of unknown kind.
    """
    if is_url(address) and not address.startswith("file://"):
        return S3Store(*resolve_filesystem(address, use_listings_cache=False), address)
    return LocalStore(Path(address.removeprefix("file://")).expanduser().absolute())


class LocalStore(Store):
    """Files in a directory, which several machines may share; the first write creates it."""

    def __init__(self, root: Path) -> None:
        self.root, self.address = root, str(root)

    def list_files(self, folder: str) -> list[str]:
        """List visible files: hidden ones are still being written."""
        with self._translate_errors(folder, "listed"):
            return sorted(self._walk_files(folder))

    def read_bytes(self, path: str) -> bytes:
        """Read a file."""
        with self._translate_errors(path, "read"):
            return (self.root / path).read_bytes()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a temporary file and rename it."""
        with self._translate_errors(path, "written"), atomic_file(self.root / path) as temporary:
            temporary.write_bytes(data)

    def create_file(self, path: str, data: bytes) -> bool:
        """Write a temporary file and link it to the name."""
        target = self.root / path
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._translate_errors(path, "written"):
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(data)
                fsync_path(temporary)
                # A rename would replace another writer's file; a hard link fails where there is
                # one, and gives the name to bytes that are all on the disk.
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, target)
                    fsync_path(target.parent)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        return self.read_bytes(path) == data

    def put_file(self, source: Path, path: str) -> None:
        """Copy to a temporary file and rename it."""
        _require_file(source)
        with self._translate_errors(path, "written"), atomic_file(self.root / path) as temporary:
            shutil.copyfile(source, temporary)

    def get_file(self, path: str, target: Path) -> None:
        """Copy a file."""
        with (
            self._translate_errors(path, "read"),
            atomic_file(target, durable=False) as temporary,
        ):
            shutil.copyfile(self.root / path, temporary)

    def remove(self, path: str) -> None:
        """Remove a file or folder."""
        if (self.root / path).is_dir():
            shutil.rmtree(self.root / path, ignore_errors=True)
        else:
            (self.root / path).unlink(missing_ok=True)

    def _walk_files(self, folder: str) -> Iterator[str]:
        """Yield paths without a `stat` of each: a registry with a long history has many files."""
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue  # being written, or left by a write that was killed
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    # Links are not followed: two that lead upwards would be walked for ever.
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._walk_files(path)
                    else:
                        yield path
        except FileNotFoundError:
            return
        except NotADirectoryError:
            # As in S3, where a path is a prefix: a file is found under its own name.
            if not (self.root / folder).is_file():
                raise
            yield folder

    @contextmanager
    def _translate_errors(self, path: str, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and action == "read":
                raise NotFound(f"{self.root / path}: no such file") from None
            raise StoreError(
                f"{self.root / path}: cannot be {action}: {error.strerror or error}; a store needs "
                "a directory with hard links, free space, and your permission, or s3://BUCKET/PREFIX"
            ) from None


class S3Store(Store):
    """Files under `root` in a file system of fsspec whose `pipe_file` can create exclusively.

    A put of S3 is atomic by itself, so files are written in place.
    """

    def __init__(self, filesystem: Any, root: str, address: str = "") -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.address = address or self._root

    def list_files(self, folder: str) -> list[str]:
        """List a folder as it is now."""
        # A cached listing would hide what other writers did since.
        self._filesystem.invalidate_cache()
        with self._translate_errors(folder):
            try:
                entries = self._filesystem.find(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                return []
        start = len(self._filesystem._strip_protocol(self._root)) + 1
        # A folder whose files are removed while it is listed may be returned as an entry itself.
        return sorted(path[start:] for path, entry in entries.items() if entry["type"] == "file")

    def read_bytes(self, path: str) -> bytes:
        """Get an object."""
        with self._translate_errors(path):
            return bytes(self._filesystem.cat_file(f"{self._root}/{path}"))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Put an object."""
        with self._translate_errors(path, writing=True):
            self._filesystem.pipe_file(f"{self._root}/{path}", data)

    def create_file(self, path: str, data: bytes) -> bool:
        """Put an object on the condition that its key is free."""
        # mode="create" sends If-None-Match: * with the put. S3 refuses it with PreconditionFailed
        # where the key exists: another writer won, or our own first try did and its answer got
        # lost, which only the bytes can tell. ConditionalRequestConflict means that another write
        # of the key has not ended yet; S3 asks to repeat the request.
        with self._translate_errors(path, writing=True):
            for _ in range(CONFLICT_RETRIES):
                try:
                    self._filesystem.pipe_file(f"{self._root}/{path}", data, mode="create")
                except OSError as error:
                    if isinstance(error, FileExistsError) or _is_code(error, "PreconditionFailed"):
                        return self.read_bytes(path) == data
                    if not _is_code(error, "ConditionalRequestConflict"):
                        raise
                else:
                    return True
            raise StoreError(f"{self.address}/{path}: other writers keep changing it; try again")

    def put_file(self, source: Path, path: str) -> None:
        """Upload a file."""
        _require_file(source)
        with self._translate_errors(path, writing=True):
            self._filesystem.put_file(str(source), f"{self._root}/{path}")

    def get_file(self, path: str, target: Path) -> None:
        """Download a file."""
        with self._translate_errors(path), atomic_file(target, durable=False) as temporary:
            self._filesystem.get_file(f"{self._root}/{path}", str(temporary))

    def remove(self, path: str) -> None:
        """Delete an object, or all under a prefix."""
        paths = [f"{self._root}/{each}" for each in self.list_files(path)]
        with self._translate_errors(path):
            if paths:
                self._filesystem.rm(paths)

    @contextmanager
    def _translate_errors(self, path: str, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if writing:
                raise StoreError(
                    f"{self.address}/{path}: no such bucket; create it, or name another"
                ) from None
            raise NotFound(f"{self.address}/{path}: no such file") from None
        except client_errors(self.address) as error:
            way_out = WAYS_OUT.get(type(error).__name__, PERMISSIONS)
            reason = " ".join(str(error).split())
            raise StoreError(f"{self.address}/{path}: {reason}; {way_out}") from None


def _require_file(source: Path) -> None:
    """Raise NotFound where a file of this machine is absent; that is no fault of the store."""
    if not source.is_file():
        raise NotFound(f"{source}: no such file on this machine")


def _is_code(error: OSError, code: str) -> bool:
    """Return whether S3 gave an error that s3fs translated this code."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", "")) == code
