"""The file of the token by which Ray knows its user, kept from every other user of this machine.

Whoever has the token runs code as its user, and gets every gradient and every text. Ray 2.60 makes
the file itself if there is none, but readable by everybody; so it is made here first.
"""

import os
import secrets
import stat
import sys
import tempfile
from pathlib import Path

from cluster.private_files import UnsafePathError, private_directory

TOKEN_FILE = ".ray/auth_token"  # below the home
TOKEN_BYTES = 32


def token_path() -> Path:
    """Return where Ray looks for the token that no environment variable gives."""
    return Path.home() / TOKEN_FILE


def ensure_token_file() -> bool:
    """Make the token file unless there is one; return whether it was made.

    One that others may read is closed to them, with a warning. Raises UnsafePathError for a file,
    or a directory, that is a link or of another user, and for one that cannot be made.
    """
    path = token_path()
    were_open = _can_others_enter(path)
    private_directory(path.parent)
    if os.path.lexists(path):
        _check_owner(path)
        _close(path, were_open)
        if path.read_bytes().strip():
            return False
        path.unlink()  # Ray takes a blank file for none
    return _write_new(path)


def ensure_token() -> None:
    """Make the token for a Ray that this process starts, unless the user gives Ray another.

    As Ray does, RAY_AUTH_TOKEN is preferred, then the file RAY_AUTH_TOKEN_PATH; a RAY_AUTH_MODE
    other than `token` wants none. Raises UnsafePathError as `ensure_token_file` does.
    """
    if _is_wanted_by_ray():
        try:
            ensure_token_file()
        except UnsafePathError as error:
            raise UnsafePathError(
                f"{error}; or name a token file of yours in RAY_AUTH_TOKEN_PATH"
            ) from None


def close_token_file() -> None:
    """Close the token file to others where there is one of this user: before a Ray is joined.

    Whatever is wrong with it otherwise is left to the cluster that wrote it there.
    """
    path = token_path()
    if not _is_wanted_by_ray() or path.is_symlink() or not path.is_file():
        return
    if path.stat().st_uid == os.getuid():
        _close(path, _can_others_enter(path))


def _is_wanted_by_ray() -> bool:
    """Return whether Ray of this process reads the file in the home."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return not given and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"


def _check_owner(path: Path) -> None:
    """Raise UnsafePathError unless `path` is a file of this user, and no link to one."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(f"{path}: is a link, or no file; remove it")
    if status.st_uid != os.getuid():
        raise UnsafePathError(
            f"{path}: belongs to user {status.st_uid}, who knows the token; remove it"
        )


def _close(path: Path, were_open: bool) -> None:
    """Take the rights of others to `path`; warn where they have had any."""
    mode = stat.S_IMODE(os.lstat(path).st_mode)
    if mode & 0o077:
        path.chmod(mode & 0o700)
        if were_open:
            print(
                f"warning: {path} was open to other users of this machine, and is closed now; if "
                "one of them may have read it, remove it and start your clusters anew",
                file=sys.stderr,
                flush=True,
            )


def _can_others_enter(path: Path) -> bool:
    """Return whether others can get as far as the directory of `path`."""
    parents = [parent for parent in path.parents if parent.is_dir()]
    return all(os.stat(parent).st_mode & 0o011 for parent in parents)


def _write_new(path: Path) -> bool:
    """Write a new token to `path`; return False where another process was faster."""
    try:
        # Complete before it has its name: a Ray that starts meanwhile must not read half of it.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".auth_token-")
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(TOKEN_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)  # refuses a name that exists, link or not
        finally:
            os.unlink(name)
    except FileExistsError:
        _check_owner(path)
        return False
    except OSError as error:
        raise UnsafePathError(f"{path}: cannot be made: {error.strerror}") from None
    return True
