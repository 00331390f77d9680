"""Directories and files that are whole or not there: written beside, synced, then renamed.

A reader never sees half of one, and `find_corruption` notices a byte that changed since.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: object) -> str:
    """Return the SHA-256 of a plain value, by its JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `directory`, by relative name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}


def find_corruption(directory: Path, expected: Mapping[str, str]) -> str | None:
    """Describe the first file of `expected` (name to SHA-256) that is missing or altered."""
    for name, digest in expected.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if file_sha256(path) != digest:
            return f"{name} is not the file that was written (its SHA-256 differs)"
    return None


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `target` when the block succeeds.

    Everything is on the disk before the name appears. An older `target` is replaced.
    """
    temporary = create_temporary(target)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    commit_directory(temporary, target)


def create_temporary(target: Path) -> Path:
    """Create a temporary directory for `target`; remove what a killed process left of one."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    return temporary


def commit_directory(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`, in place of an older one, once all of it is on the disk."""
    # The order matters after a power cut: a rename may reach the disk before the bytes that were
    # written earlier, so every file and directory is synced first, and the parent, which holds the
    # new name, last.
    for path in [*temporary.rglob("*"), temporary]:
        fsync_path(path)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    fsync_path(target.parent)


@contextmanager
def atomic_file(target: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that replaces the file `target` when the block succeeds.

    durable: sync it to the disk first; a download that is verified later can do without.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if durable:
            fsync_path(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def fsync_path(path: Path) -> None:
    """Sync a file or directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
