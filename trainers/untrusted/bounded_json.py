"""Read files that a stranger may have written: no more bytes than they may have, and plain JSON.

Nothing here trusts a number that a file states about itself.
"""

import json
import stat
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError

FETCH_AGAIN = "fetch it again from where it was made"
MAX_CONTAINERS = 1_000_000  # objects and lists in a document; each takes some 60 bytes of memory


class UntrustedFileError(BerthaError):
    """A file that would cost too much or is not what its name says; names the way out."""


def format_bytes(size: float) -> str:
    """Return a size for a person, as in 1.5 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def check_size(path: Path, max_bytes: int, way_out: str = FETCH_AGAIN) -> int:
    """Return the size of a regular file. Raises UntrustedFileError for a larger one."""
    try:
        status = path.stat()
    except OSError as error:
        raise UntrustedFileError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(f"{path}: is no regular file; put the file itself there")
    if status.st_size > max_bytes:
        raise UntrustedFileError(
            f"{path}: holds {format_bytes(status.st_size)}, and at most {format_bytes(max_bytes)} "
            f"of such a file are read; {way_out}"
        )
    return status.st_size


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read the JSON object in a file of at most `max_bytes`. Raises UntrustedFileError."""
    check_size(path, max_bytes)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UntrustedFileError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_json(data, max_bytes, str(path))


def parse_json(data: bytes, max_bytes: int, where: str) -> dict[str, Any]:
    """Parse a JSON object whose keys occur once. Raises UntrustedFileError that names `where`."""
    if len(data) > max_bytes:
        raise UntrustedFileError(
            f"{where}: holds {format_bytes(len(data))}, and at most {format_bytes(max_bytes)} of "
            f"such a file are read; {FETCH_AGAIN}"
        )
    # Counted before anything is built: a document of a few megabytes can nest millions of lists.
    containers = data.count(b"[") + data.count(b"{")
    if containers > MAX_CONTAINERS:
        raise UntrustedFileError(
            f"{where}: has {containers} lists and objects, and at most {MAX_CONTAINERS} are read; "
            f"{FETCH_AGAIN}"
        )
    try:
        value = json.loads(data, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise UntrustedFileError(
            f"{where}: is nested too deeply to be read; {FETCH_AGAIN}"
        ) from None
    except ValueError as error:
        raise UntrustedFileError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UntrustedFileError(f"{where}: holds a {type(value).__name__}, not a JSON object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; two readers may disagree on which of two equal keys counts."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is written twice")
    return value
