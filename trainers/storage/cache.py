"""Directories that are built once on a machine, by the first process that needs them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from trainers.storage.atomic import atomic_directory

T = TypeVar("T")


def build_once(
    directory: Path, build: Callable[[Path], object], load: Callable[[Path], T | None]
) -> T:
    """Return `load(directory)`, building the directory first where that gives None.

    load: None where the directory is missing or not whole. build: fills a temporary directory,
    which is then renamed to `directory`. Of several processes one builds and the others wait.
    Raises OSError where the directory cannot be written, or is not whole after it was.
    """
    value = load(directory)
    if value is not None:
        return value
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f".{directory.name}.lock")):
        value = load(directory)  # another process may have built it while this one waited
        if value is None:
            with atomic_directory(directory) as temporary:
                build(temporary)
            value = load(directory)
    if value is None:
        raise OSError(f"{directory} is not what was just written; is the disk sound?")
    return value
