"""What a command and all that it has started listen at, as Linux reports it in /proc."""

import contextlib
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import psutil

LISTENING = "0A"  # the state of a TCP socket, in include/net/tcp_states.h
ACCEPTING = 0x10000  # the flag of a Unix socket that listens, in include/linux/net.h


@dataclass(frozen=True)
class OpenSocket:
    """A socket that others could connect, or send, to.

    kind: as the file in /proc/net. address: a path where kind is "unix", "" where it has none, as
    an abstract one.
    """

    kind: str
    address: str
    port: int
    process: int
    command: str

    @property
    def is_private(self) -> bool:
        """Whether other machines, and where it is a path other users, are kept from it."""
        if self.kind == "unix":
            return self.address.startswith("/") and is_private_path(Path(self.address))
        address = ipaddress.ip_address(self.address)
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


def is_private_path(path: Path) -> bool:
    """Whether a directory that leads to `path` lets only this user pass.

    True where the path is gone: a socket in it has ended.
    """
    if not path.parent.is_dir():
        return True
    for parent in path.parents:
        status = os.stat(parent)
        if status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077:
            return True
    return False


def list_open_sockets(root: psutil.Process, mark: tuple[str, str]) -> set[OpenSocket]:
    """List what `root` and its descendants listen at now.

    mark: an environment variable of all of them, by which those are found that have left the family
    to live on.
    """
    owners: dict[str, tuple[int, str]] = {}
    for process in [root, *root.children(recursive=True), *_list_marked(mark)]:
        for inode in _socket_inodes(process.pid):
            owners.setdefault(inode, (process.pid, _command(process)))
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for row in _rows(kind):
            local, peer, state, inode = row[1], row[2], row[3], row[9]
            # A UDP socket that is connected takes nothing from elsewhere.
            is_open = state == LISTENING if kind.startswith("tcp") else peer.endswith(":0000")
            if inode in owners and is_open:
                found.add(OpenSocket(kind, *_parse_address(local), *owners[inode]))
    for row in _rows("unix"):
        if row[6] in owners and int(row[3], 16) & ACCEPTING:
            process, command = owners[row[6]]
            address = _resolve_path("".join(row[7:8]), process)
            found.add(OpenSocket("unix", address, 0, process, command))
    return found


def _resolve_path(address: str, process: int) -> str:
    """Return the whole path of a Unix socket that was bound by a relative one."""
    if not address or address[0] in "/@":
        return address
    try:
        return os.path.join(os.readlink(f"/proc/{process}/cwd"), address)
    except OSError:  # it has ended
        return f"/nowhere/{address}"


def _list_marked(mark: tuple[str, str]) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get(mark[0]) == mark[1]
    ]


def _rows(kind: str) -> list[list[str]]:
    return [line.split() for line in Path("/proc/net", kind).read_text().splitlines()[1:]]


def _socket_inodes(process: int) -> list[str]:
    """List the inodes of the sockets that a process has open; none where it has ended."""
    links = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                links.append(os.readlink(entry))
    return [link[len("socket:[") : -1] for link in links if link.startswith("socket:[")]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _parse_address(given: str) -> tuple[str, int]:
    """Parse as "0100007F:1F90": words of four bytes, each in the order of this machine."""
    digits, port = given.split(":")
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words)), int(port, 16)
