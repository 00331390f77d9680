"""Directories that are whole or not there: written aside, hashed, then made visible.

Checkpoints and bundles are both sealed. A reader never sees half of one, and notices a byte that
changed since.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file under `directory`, by relative name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): sha256(path) for path in files}


def flaw(directory: Path, expected: Mapping[str, str]) -> str | None:
    """The first file of `expected` (name to SHA-256) that is missing or altered, in words."""
    for name, digest in expected.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256(path) != digest:
            return f"{name} is not the file that was written (its SHA-256 differs)"
    return None


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A temporary directory that takes the name `target` when the block ends well.

    Everything is on the disk before the name appears. An older `target` is replaced.
    """
    aside = begin(target)
    yield aside
    reveal(aside, target)


def begin(target: Path) -> Path:
    """A fresh temporary directory for what will be `target`; what a kill left of one goes."""
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    aside.mkdir(parents=True)
    return aside


def reveal(aside: Path, target: Path) -> None:
    """Give `aside` the name `target`, in place of an older one, once all of it is on the disk."""
    for path in [*aside.rglob("*"), aside]:
        _sync(path)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)
    _sync(target.parent)


def write_file(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.rename(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
