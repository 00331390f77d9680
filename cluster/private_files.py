"""Directories of this user alone, verified before they are used or used again.

Whoever can write to the directory of a running server decides what it runs. So nothing is kept
under a name that another user of the machine could have taken first.
"""

import os
import stat
from pathlib import Path

from cluster.errors import BerthaError


class UnsafePathError(BerthaError):
    """A path that another user of this machine could change; the message says the way out."""


def private_directory(path: Path) -> Path:
    """Return `path`, created if need be, as a directory that only this user can read or change.

    A directory of this user that others may read is closed to them. Raises UnsafePathError for one
    of another user, one that others may write to, and a symbolic link; also where the directory
    lies in one that everybody may write to, except one with the sticky bit, as /tmp.
    """
    path = path.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UnsafePathError(f"{path}: cannot be created: {error.strerror}") from None
    # The link itself, not what it points to: whoever made the link can point it elsewhere later.
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafePathError(f"{path}: is no directory; remove it")
    if status.st_uid != os.getuid():
        raise UnsafePathError(
            f"{path}: belongs to user {status.st_uid}; remove it, or have it removed"
        )
    if status.st_mode & 0o022:
        raise UnsafePathError(f"{path}: others may write to it; remove it and what it holds")
    for parent in path.resolve().parents:
        _check_parent(path, parent)
    path.chmod(0o700)
    return path


def _check_parent(path: Path, parent: Path) -> None:
    status = os.stat(parent)
    if status.st_uid not in (0, os.getuid()):
        raise UnsafePathError(
            f"{path}: {parent} belongs to user {status.st_uid}; use another place"
        )
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise UnsafePathError(
            f"{path}: everybody may write to {parent}; set another HOME or TMPDIR, or take "
            f"that right away with chmod o-w {parent}"
        )
