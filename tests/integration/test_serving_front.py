"""HAProxy and replicas that are processes: killed, drained, added; no request is lost."""

import datetime
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from serving.deployment import front
from serving.deployment.front import Heartbeat, ReplicaTable
from serving.deployment.haproxy import HAProxy, HAProxyError, render_config
from tests.support.clients import ClientLoad
from tests.support.model_servers import make_registry
from tests.support.paths import ROOT
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.multiprocess

SCRIPT = ROOT / "tests/support/replica_process.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> str:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("front") / "bundle", tiny_bert)
    return make_registry(tmp_path_factory.mktemp("registry"), bundle).address


class Process:
    """A replica in a process of its own."""

    def __init__(self, registry: str) -> None:
        command = [sys.executable, str(SCRIPT), registry]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def address(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=60)


@contextmanager
def balanced(directory: Path) -> Iterator[tuple[HAProxy, str, int]]:
    """HAProxy in a directory, and where it listens."""
    port = free_port()
    haproxy = HAProxy.start(directory, "127.0.0.1", port)
    try:
        yield haproxy, f"http://127.0.0.1:{port}", port
    finally:
        haproxy.stop()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path is short enough for a socket."""
    return tmp_path_factory.mktemp("h")


def test_no_request_is_lost_while_replicas_die_and_come_and_go(registry: str, short: Path) -> None:
    with balanced(short) as (haproxy, url, port):
        one, two = Process(registry), Process(registry)
        replicas = ReplicaTable(haproxy)
        first, second = Heartbeat(one.address()), Heartbeat(two.address())
        assert (replicas.heartbeat(first), replicas.heartbeat(second)) == (1, 2)
        with ClientLoad(url) as load:
            time.sleep(1)
            one.process.kill()
            time.sleep(1)
            three = Process(registry)
            third = Heartbeat(three.address())
            replicas.heartbeat(third)
            replicas.remove_replica(first.address)
            adopted = ReplicaTable(HAProxy.start(short, "127.0.0.1", port))  # as a front does anew
            time.sleep(1)
            adopted.drain_replica(second.address)
            time.sleep(0.3)
            two.end()
            adopted.remove_replica(second.address)
            time.sleep(1)
        assert set(load.seen) == {200}
        assert load.seen[200] > 100
        assert adopted.heartbeat(third) == 1
        three.end()
    one.process.communicate()


def test_who_is_silent_is_taken_out_and_its_counts_stay(
    registry: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HEARTBEAT_TIMEOUT_SECONDS", 0.2)
    counts = {("bertha_batches_total", ()): 3.0, ("bertha_waiting_requests", ()): 2.0}
    with balanced(short) as (haproxy, url, _):
        replicas = ReplicaTable(haproxy)
        replicas.heartbeat(Heartbeat("127.0.0.1:9", counts))
        assert [slot.address for slot in haproxy.list_slots()] == ["127.0.0.1:9"]
        time.sleep(0.3)
        replicas.evict_silent()
        assert haproxy.list_slots() == []
        assert replicas.merge_samples() == {
            ("bertha_batches_total", ()): 3.0,
            ("bertha_replicas", ()): 0.0,
        }
        response = httpx.post(f"{url}/predict", json={"inputs": "a"}, trust_env=False)
        assert response.status_code == 503
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {"error": "no replica is ready; try again"}
        assert response.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/-/replica", trust_env=False).status_code == 404


def test_haproxy_that_cannot_listen_says_so(short: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(HAProxyError, match="did not start"):
            HAProxy.start(short, "127.0.0.1", holder.getsockname()[1])


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


def test_tls(short: Path, tmp_path: Path) -> None:
    port = free_port()
    haproxy = HAProxy.start(short, "127.0.0.1", port, certified(tmp_path / "both.pem"))
    try:
        response = httpx.get(f"https://127.0.0.1:{port}/info", verify=False, trust_env=False)
        assert response.json() == {"error": "no replica is ready; try again"}
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"https://127.0.0.1:{port}/info", trust_env=False)
    finally:
        haproxy.stop()
    assert "bind [::1]:80\n" in render_config(tmp_path, "::1", 80)
