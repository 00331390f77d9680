"""Where an endpoint under test keeps its registry and cache, and what of that can be broken.

A place is a directory, a small disk of its own, S3, or a directory under a clock that can be moved.
Raises NotPossible, with the reason, where this machine cannot have it.
"""

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broken_s3 import BrokenS3, open_broken_s3

SHIM = Path(__file__).parent / "clock_shim.c"
DISK_MIB = 700  # of the small disk: several versions of a bundle fit


class NotPossible(Exception):
    """What this machine does not let us try; the message says why."""


@dataclass(frozen=True)
class Place:
    """A place. root: of registry and cache. environment: of the endpoint's processes."""

    root: Path
    registry: str
    environment: Mapping[str, str] = field(default_factory=dict)
    s3: BrokenS3 | None = None
    clock: Path | None = None

    def move_clock(self, seconds: int) -> None:
        """Set the wall clock of the endpoint's processes `seconds` off that of this machine."""
        assert self.clock is not None
        with self.clock.open("r+b") as file:  # in place: it is mapped
            file.write(struct.pack("q", seconds))


@contextmanager
def open_directory(root: Path) -> Iterator[Place]:
    """Keep the registry in a directory."""
    yield _local_place(root)


@contextmanager
def open_small_disk(root: Path) -> Iterator[Place]:
    """Keep registry and cache on a file system of their own, in memory."""
    _run("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=700", "none", str(root))
    try:
        yield _local_place(root)
    finally:
        # Lazily: processes that end may still hold files there.
        _run("umount", "--lazy", str(root))


@contextmanager
def open_s3(root: Path) -> Iterator[Place]:
    """Keep the registry in an S3 that can be broken, and the cache in a directory."""
    try:
        with open_broken_s3("models") as s3:
            environment = {**_environment(root), **s3.environment}
            yield Place(root, "s3://models/registry", environment, s3=s3)
    except ImportError as error:
        raise NotPossible(f"{error}; pip install -e .[dev]") from None


@contextmanager
def open_movable_clock(root: Path) -> Iterator[Place]:
    """Keep the registry in a directory, and let the processes' wall clock be moved."""
    library, clock = root / "clock.so", root / "clock"
    compiler = shutil.which("cc")
    if compiler is None:
        raise NotPossible("no C compiler for clock_shim.c; apt-get install gcc")
    _run(compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl", "-lpthread")
    clock.write_bytes(struct.pack("q", 0))
    place = _local_place(root)
    preloaded = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(clock)}
    yield Place(root, place.registry, {**place.environment, **preloaded}, clock=clock)


PLACES: Mapping[str, Callable[[Path], AbstractContextManager[Place]]] = {
    "directory": open_directory,
    "disk": open_small_disk,
    "s3": open_s3,
    "clock": open_movable_clock,
}


def _local_place(root: Path) -> Place:
    return Place(root, str(root / "registry"), _environment(root))


def _environment(root: Path) -> dict[str, str]:
    """Return what puts the cache into `root`, and sockets beside it, where no disk gets full."""
    run = root.parent / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    return {"HOME": str(root), "XDG_RUNTIME_DIR": str(run)}


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotPossible(f"{' '.join(command[:3])}: {done.stderr.strip()}")
