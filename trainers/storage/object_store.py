"""Files in S3, or in whatever else fsspec can reach: whole or not there, every failure in words.

A put of S3 is all or nothing; of several writers that create one file, one wins by a conditional
write (If-None-Match). Needs the `aws` extra for `s3://`. Knows neither runs nor models.

    store = reach("s3://models/registry")
"""

import importlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from cluster.errors import BerthaError

PERMISSIONS = (
    "a store in S3 wants s3:ListBucket, GetObject, PutObject and DeleteObject on its prefix"
)
_NETWORK = "is AWS_ENDPOINT_URL, or the region, as it should be, and the network up?"
_CREDENTIALS = "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
WAYS_OUT = {  # by what botocore calls a failure
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": _CREDENTIALS,
    "EndpointConnectionError": _NETWORK,
    "ConnectTimeoutError": _NETWORK,
}
BUSY_TRIES = 20  # of a write that S3 asks to repeat, because another of the same key is under way


class StoreError(BerthaError):
    """A store that cannot be read or written; the text says where, why, and the way out."""


class Absent(StoreError):
    """A file that is not in the store."""


def reach(address: str) -> "ObjectStore":
    """The store at a URL; nothing is asked yet. Raises StoreError for a URL of unknown kind."""
    try:
        filesystem, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        extra = '; pip install "bertha[aws]"' if address.startswith("s3") else ""
        raise StoreError(f"{address}: cannot be reached: {error}{extra}") from None
    return ObjectStore(filesystem, root, address)


class ObjectStore:
    """Files under `root` in a file system of fsspec whose `pipe_file` can create exclusively.

    Their paths are relative, as "a/b/c". address: what `reach` takes.
    """

    def __init__(self, filesystem: Any, root: str, address: str = "") -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")
        self.address = address or self._root

    def files(self, folder: str) -> list[str]:
        """Paths of all files under `folder`, sorted; none where there is no such folder."""
        # A listing that was kept would hide what other writers did since.
        self._filesystem.invalidate_cache()
        with self._failing_in_words(folder):
            try:
                found = self._filesystem.find(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                return []
        start = len(self._filesystem._strip_protocol(self._root)) + 1
        # A folder whose files go while it is listed may be found as one.
        return sorted(path[start:] for path, each in found.items() if each["type"] == "file")

    def read(self, path: str) -> bytes:
        """The bytes of a file. Raises Absent."""
        with self._failing_in_words(path):
            return bytes(self._filesystem.cat_file(f"{self._root}/{path}"))

    def create(self, path: str, data: bytes) -> bool:
        """Create a file; False where there is one already, unless it holds the same bytes."""
        with self._failing_in_words(path, writing=True):
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

    def write(self, path: str, data: bytes) -> None:
        """Make a file hold `data`."""
        with self._failing_in_words(path, writing=True):
            self._filesystem.pipe_file(f"{self._root}/{path}", data)

    def put(self, source: Path, path: str) -> None:
        """Copy a file of this machine, which nobody writes to meanwhile, to `path`."""
        with self._failing_in_words(path, writing=True):
            self._filesystem.put_file(str(source), f"{self._root}/{path}")

    def get(self, path: str, target: Path) -> None:
        """Copy a file to `target` on this machine, which it replaces in one step. Raises Absent."""
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with self._failing_in_words(path):
                self._filesystem.get_file(f"{self._root}/{path}", str(aside))
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def upload(self, source: Path, folder: str) -> None:
        """Copy a directory of this machine to `folder`."""
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            self.put(path, f"{folder}/{path.relative_to(source).as_posix()}")

    def download(self, folder: str, target: Path) -> None:
        """Copy the files of `folder` into the directory `target` of this machine."""
        for path in self.files(folder):
            self.get(path, target / path.removeprefix(f"{folder}/"))

    def remove(self, path: str) -> None:
        """Remove a file, or a folder and what is in it; nothing where it is not there."""
        paths = [f"{self._root}/{each}" for each in self.files(path)]
        with self._failing_in_words(path):
            if paths:
                self._filesystem.rm(paths)

    def local(self, folder: str) -> Path | None:
        """Where `folder` lies on a disk of this machine: nowhere."""
        return None

    def probe(self) -> None:
        """Raise StoreError where files cannot be written, read and removed here."""
        path = f".probe-{uuid.uuid4().hex}"
        self.write(path, b"")
        self.read(path)
        self.remove(path)

    @contextmanager
    def _failing_in_words(self, path: str, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            if writing:
                raise StoreError(
                    f"{self.address}/{path}: no such bucket; make it, or name another"
                ) from None
            raise Absent(f"{self.address}/{path}: no such file") from None
        except self._errors() as error:
            way_out = WAYS_OUT.get(type(error).__name__, PERMISSIONS)
            told = " ".join(str(error).split())
            raise StoreError(f"{self.address}/{path}: {told}; {way_out}") from None

    def _errors(self) -> tuple[type[Exception], ...]:
        """What a file system raises; S3's client for absent credentials something of its own."""
        if not self.address.startswith(("s3://", "s3a://")):
            return (OSError,)
        return OSError, importlib.import_module("botocore.exceptions").BotoCoreError


def _code(error: OSError) -> str:
    """What S3 calls an error that s3fs translated, or ""."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
