"""A registry's store in S3, or in whatever else fsspec can reach and create exclusively.

Files are whole or not there because a put of S3 is; of several that create one file, one wins by a
conditional write (If-None-Match). Needs the `aws` extra for `s3://`. Knows no models.

    store = open_store("s3://models/registry")      # of `serving.registry.store`
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from serving.registry.store import Absent, StoreError

BUSY_TRIES = 20  # of a write that S3 asks to repeat, because another of the same key is under way


def reach(address: str) -> "ObjectStore":
    """The store at a URL. Raises StoreError where no file system is known for it."""
    try:
        filesystem, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        extra = '; pip install "bertha[aws]"' if address.startswith("s3") else ""
        raise StoreError(f"{address}: cannot be reached: {error}{extra}") from None
    return ObjectStore(filesystem, root, address)


class ObjectStore:
    """Files under `root` in a file system of fsspec whose `pipe_file` can create exclusively."""

    def __init__(self, filesystem: Any, root: str, address: str = "") -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.address = address or self._root

    def files(self, folder: str) -> list[str]:
        # A listing that was kept would hide what other writers did since.
        self._filesystem.invalidate_cache()
        with self._failing_in_words(folder):
            try:
                found = self._filesystem.find(f"{self._root}/{folder}")
            except FileNotFoundError:
                return []
        start = len(self._filesystem._strip_protocol(self._root)) + 1
        return sorted(path[start:] for path in found)

    def read(self, path: str) -> bytes:
        with self._failing_in_words(path):
            return bytes(self._filesystem.cat_file(f"{self._root}/{path}"))

    def create(self, path: str, data: bytes) -> bool:
        with self._failing_in_words(path):
            for _ in range(BUSY_TRIES):
                try:
                    self._filesystem.pipe_file(f"{self._root}/{path}", data, mode="create")
                except OSError as error:
                    if isinstance(error, FileExistsError) or _code(error) == "PreconditionFailed":
                        return self.read(path) == data
                    if _code(error) != "ConditionalRequestConflict":
                        raise
                else:
                    return True
            raise StoreError(f"{self.address}/{path}: others write it all the time; try again")

    def upload(self, source: Path, folder: str) -> None:
        with self._failing_in_words(folder):
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                name = path.relative_to(source).as_posix()
                self._filesystem.put_file(str(path), f"{self._root}/{folder}/{name}")

    def download(self, folder: str, target: Path) -> None:
        with self._failing_in_words(folder):
            for path in self.files(folder):
                name = target / path.removeprefix(f"{folder}/")
                name.parent.mkdir(parents=True, exist_ok=True)
                self._filesystem.get_file(f"{self._root}/{path}", str(name))

    def remove(self, folder: str) -> None:
        paths = [f"{self._root}/{path}" for path in self.files(folder)]
        with self._failing_in_words(folder):
            if paths:
                self._filesystem.rm(paths)

    def local(self, folder: str) -> Path | None:
        return None

    @contextmanager
    def _failing_in_words(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise Absent(f"{self.address}/{path}: no such file") from None
        except self._errors() as error:
            raise StoreError(
                f"{self.address}/{path}: {' '.join(str(error).split())}; a registry in S3 wants "
                "s3:ListBucket, GetObject, PutObject and DeleteObject on its prefix"
            ) from None

    def _errors(self) -> tuple[type[Exception], ...]:
        """What a file system raises; S3's client for absent credentials something of its own."""
        if not self.address.startswith(("s3://", "s3a://")):
            return (OSError,)
        return OSError, importlib.import_module("botocore.exceptions").BotoCoreError


def _code(error: OSError) -> str:
    """What S3 calls an error that s3fs translated, or ""."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
