"""Lines of logs on their way: from HAProxy to the front, and from all processes to the terminal.

A request that a replica answers is logged there. One that none answers is logged by HAProxy, which
sends datagrams; the front writes them where the replicas write theirs. Under `bertha serve` that
is a pipe, whose lines this machine's command prints.
"""

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.private_files import private_directory
from serving.deployment.haproxy import LOG_SOCKET
from serving.http.log_lines import MAX_LINE_BYTES, write_line

log = logging.getLogger(__name__)


class HAProxyLog:
    """The socket in HAProxy's directory, and the thread that reads it until the process ends."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        directory = private_directory(directory)
        (directory / LOG_SOCKET).unlink(missing_ok=True)
        # Through the open directory, because a socket's path has at most 107 bytes.
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._socket.bind(f"/proc/self/fd/{folder}/{LOG_SOCKET}")
        finally:
            os.close(folder)

    def start(self) -> None:
        """Start to read."""
        threading.Thread(target=self._read, daemon=True, name="log").start()

    def _read(self) -> None:
        while True:
            data = self._socket.recv(2 * MAX_LINE_BYTES)
            try:
                line = json.loads(data)
            except ValueError:  # a message of HAProxy's own, as of a server that is down
                log.info("HAProxy: %s", data.decode(errors="replace").strip())
                continue
            # Without a status the client left: before it asked, or while a replica logs that.
            if line["status"] >= 100:
                write_line(line)


@contextmanager
def print_lines(path: Path) -> Iterator[Path]:
    """Print the lines that other processes append to the pipe at `path`, for the block."""
    os.mkfifo(path, 0o600)
    # Open for both: else it would end whenever the last of the others closes it.
    pipe = os.open(path, os.O_RDWR)
    thread = threading.Thread(target=_print_from, args=[pipe], daemon=True, name="log")
    thread.start()
    try:
        yield path
    finally:
        os.write(pipe, b"\0\n")  # the end, behind all that was written
        thread.join(5)
        os.close(pipe)
        path.unlink(missing_ok=True)


def _print_from(pipe: int) -> None:
    with os.fdopen(os.dup(pipe), "rb") as lines:
        for line in lines:
            if line == b"\0\n":
                return
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()
