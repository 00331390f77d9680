"""The process of HAProxy: how it is started, recognized and signalled.

No process id is stored in a file. The kernel says who is behind the admin socket, and a pidfd stays
with that process, whoever is given its id later.
"""

import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_CREDENTIALS = struct.Struct("3i")  # process, user, group

# Runs HAProxy detached, with the listening socket as its file 3, behind a shell that ends it when
# the process `while_lives` has ended. The shell's output ends when HAProxy has.
_GUARD_SCRIPT = """exec 3<&0 </dev/null
(
"$@" >&2 & pid=$!
exec 3<&-
while kill -0 {while_lives} && kill -0 $pid; do sleep 0.2 >&2; done 2>/dev/null
kill -TERM $pid 2>/dev/null; kill -CONT $pid 2>/dev/null; wait $pid
) &"""


class HAProxyProcess:
    """A HAProxy of this user that runs."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd

    def __del__(self) -> None:
        os.close(self._pidfd)

    @classmethod
    def find(cls, directory: Path, arguments: Sequence[str]) -> "HAProxyProcess | None":
        """Return the HAProxy behind the admin socket in `directory`.

        None where nobody listens there, and where that is no HAProxy with these arguments.
        """
        try:
            with connect_admin(directory) as client:
                credentials = client.getsockopt(
                    socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
                )
            pid, user, _ = _CREDENTIALS.unpack(credentials)
            process = cls(os.pidfd_open(pid))
            command = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
            binary, *given = command.split("\0")[:-1]
        except (OSError, ValueError):
            return None
        if user != os.getuid() or Path(binary).name != "haproxy" or given != list(arguments):
            return None
        # Only while the process lives is it the one that /proc told about.
        return None if process.wait_for_end(0) else process

    def wait_for_end(self, seconds: float) -> bool:
        """Return whether the process has ended, or does within `seconds`."""
        return _wait_readable(self._pidfd, seconds)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)


class Guard:
    """The shell that watches HAProxy. output: ends when HAProxy has."""

    def __init__(self, group: int, output: int) -> None:
        self._group, self._output = group, output

    def wait_for_end(self, seconds: float) -> bool:
        """Return whether HAProxy has ended, or does within `seconds`."""
        return _wait_readable(self._output, seconds)

    def kill(self) -> None:
        """End HAProxy and the shell at once."""
        if not self.wait_for_end(0):  # the group's number is its own as long as it has members
            with suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGKILL)


@contextmanager
def run_guarded(
    command: Sequence[str], while_lives: int, listener: socket.socket, log: Path
) -> Iterator[Guard]:
    """Start HAProxy; it outlives this process, but not the process `while_lives`.

    listener: its file 3. log: a file for what it writes. It is ended if the block raises.
    """
    script = _GUARD_SCRIPT.format(while_lives=while_lives)
    with (
        open_fresh(log) as file,
        subprocess.Popen(
            ["/bin/sh", "-c", script, "guard", *command],
            stdin=listener.fileno(),
            stdout=subprocess.PIPE,
            stderr=file,
            start_new_session=True,
        ) as shell,
    ):
        assert shell.stdout is not None
        guard = Guard(shell.pid, shell.stdout.fileno())
        try:
            yield guard
        except BaseException:
            guard.kill()
            raise


def connect_admin(directory: Path) -> socket.socket:
    """Connect to the admin socket in `directory`. Raises OSError."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Through the open directory, because a socket's path has at most 107 bytes.
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            client.connect(f"/proc/self/fd/{folder}/admin.sock")
        finally:
            os.close(folder)
    except OSError:
        client.close()
        raise
    return client


def open_fresh(path: Path) -> BinaryIO:
    """Open a new file for writing, in the place of one of that name."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _wait_readable(file: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
