"""Running HAProxies, and replicas that are bare sockets and remember what reaches them."""

import datetime
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serving.deployment.haproxy import BACKEND, HAProxy


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_haproxy(directory: Path) -> psutil.Process:
    """Return the HAProxy that runs with the configuration in `directory`."""
    config = str(directory / "haproxy.cfg")
    (found,) = (
        each
        for each in psutil.process_iter(["name", "cmdline"])
        if each.info["name"] == "haproxy" and config in (each.info["cmdline"] or ())
    )
    return found


@contextmanager
def balanced(
    directory: Path, origins: Sequence[str] = (), grpc: bool = False
) -> Iterator[tuple[HAProxy, str, int]]:
    """HAProxy in a directory, and where it listens. origins: whose pages may read its errors."""
    port = free_port()
    haproxy = HAProxy(directory, "127.0.0.1", port, origins=origins, grpc=grpc)
    haproxy.start()
    try:
        yield haproxy, f"http://127.0.0.1:{port}", port
    finally:
        haproxy.stop()


def send_raw(port: int, request: bytes) -> bytes:
    """Send bytes to a port of this machine and return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request)
        parts = []
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def certified(place: Path) -> Path:
    """A certificate of this machine's own, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    place.write_bytes(certificate.public_bytes(pem) + secret)
    return place


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a condition; the time is only that after which a test has failed."""
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count_requests(haproxy: HAProxy, number: int, backend: str = BACKEND) -> int:
    """How many requests the replica in a slot has now and has not answered."""
    lines = haproxy._send_command(f"show servers conn {backend}").splitlines()
    names = lines[0].removeprefix("# ").split()
    rows = [dict(zip(names, line.split(), strict=False)) for line in lines[1:]]
    (row,) = [row for row in rows if row.get("bkname/svname", "").endswith(f"/r{number}")]
    return int(row["used_cur"])


class RawReplica:
    """A replica whose answer is given; remembers the targets of the requests that reached it.

    answer: sent to each request; if empty, the connection is closed instead. Readiness checks are
    answered, and not remembered.
    """

    def __init__(self, answer: bytes) -> None:
        self.targets: list[str] = []
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> "RawReplica":
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer_requests, args=(connection,), daemon=True).start()

    def _answer_requests(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                part = connection.recv(65536)
                if not part:
                    return
                data += part
            head = data.partition(b"\r\n")[0].decode()
            if head == "GET /-/replica HTTP/1.0":  # of HAProxy itself, without a host
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                return
            self.targets.append(head.split(" ")[1])
            if self._answer:
                connection.sendall(self._answer)
