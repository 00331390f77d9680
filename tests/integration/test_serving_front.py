"""HAProxy and replicas that are processes: killed, drained, added; no request is lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from serving import client
from serving.deployment import front
from serving.deployment.front import Front, Heartbeat, ReplicaTable
from serving.deployment.haproxy import HAProxy, HAProxyError, ServerSlot
from tests.support.clients import ClientLoad
from tests.support.haproxies import (
    RawReplica,
    balanced,
    certified,
    count_requests,
    find_haproxy,
    free_port,
    wait_until,
)
from tests.support.model_servers import make_registry
from tests.support.paths import ROOT
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.multiprocess

SCRIPT = ROOT / "tests/support/replica_process.py"
FRONT_SCRIPT = ROOT / "tests/support/front_process.py"
NUM_CLIENTS = 4


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


@pytest.fixture(scope="module")
def two_addresses(registry: str) -> Iterator[tuple[str, str]]:
    """The addresses of two replicas that answer."""
    one, two = Process(registry), Process(registry)
    yield one.address(), two.address()
    one.end()
    two.end()


def test_no_request_is_lost_while_replicas_die_and_come_and_go(
    registry: str, tmp_path: Path
) -> None:
    with balanced(tmp_path) as (haproxy, url, port):
        one, two = Process(registry), Process(registry)
        replicas = ReplicaTable(haproxy)
        first, second = Heartbeat(one.address()), Heartbeat(two.address())
        assert (replicas.heartbeat(first), replicas.heartbeat(second)) == (1, 2)
        with ClientLoad(url) as load:
            time.sleep(1)
            # It takes requests and does not answer: it has them when it is killed.
            one.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: count_requests(haproxy, 1) > 0)
            one.process.kill()
            time.sleep(1)
            three = Process(registry)
            third = Heartbeat(three.address())
            replicas.heartbeat(third)
            replicas.remove_replica(first.address)
            haproxy = HAProxy(tmp_path, "127.0.0.1", port)
            haproxy.start()
            adopted = ReplicaTable(haproxy)  # as a front does anew
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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, where fronts keep the files of HAProxy."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(front, "HEARTBEAT_TIMEOUT_SECONDS", 1000.0)
    return tmp_path


def directory_below(home: Path, port: int) -> Path:
    return home / f".cache/bertha/run/serve-{socket.gethostname()}-{port}"


def test_haproxy_that_is_killed_is_back_with_its_replicas(
    registry: str, two_addresses: tuple[str, str], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, kills = free_port(), 3
    running = Front("127.0.0.1", port, None, registry)
    directory = directory_below(home, port)
    for address in two_addresses:
        running.heartbeat(Heartbeat(address))
    looker = HAProxy(directory, "127.0.0.1", port)
    slots = looker.list_slots()
    assert [(slot.number, slot.address) for slot in slots] == [*enumerate(two_addresses, 1)]
    with ClientLoad(f"http://127.0.0.1:{port}", NUM_CLIENTS) as load:
        for _ in range(kills):
            wait_until(lambda: load.seen[200] > 20)
            killed = find_haproxy(directory)
            killed.kill()
            psutil.wait_procs([killed])
            load.seen[200] = 0  # what is answered from here on, another one has answered
            wait_until(lambda: load.seen[200] > 20)
            assert find_haproxy(directory) != killed
            assert looker.list_slots() == slots
            running.check_health()
    running.__del__()
    # Only requests under way are lost, one a client at most; nobody is refused.
    lost = {what: number for what, number in load.seen.items() if what != 200}
    assert sum(lost.values()) <= kills * NUM_CLIENTS
    assert not any(str(what).startswith(("Connect", "5")) for what in lost)
    assert caplog.text.count("HAProxy has ended; it is started again") == kills
    assert not (directory / "admin.sock").exists()


def test_haproxy_that_cannot_be_started_is_tried_again_now_and_then(
    registry: str, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = certified(tmp_path / "both.pem")
    port = free_port()
    running = Front("127.0.0.1", port, str(certificate), registry)
    running.heartbeat(Heartbeat("127.0.0.1:9"))
    directory = directory_below(home, port)
    certificate.rename(tmp_path / "away.pem")
    started = time.monotonic()
    find_haproxy(directory).kill()
    wait_until(lambda: caplog.text.count(f"did not start at 127.0.0.1:{port}") >= 3)
    tries = caplog.text.count("it is started again")
    assert tries <= 1 + (time.monotonic() - started) / front.WATCH_SECONDS
    assert "both.pem" in caplog.text
    running.check_health()  # another front would fare no better
    (tmp_path / "away.pem").rename(certificate)
    wait_until(HAProxy(directory, "127.0.0.1", port).is_alive)
    assert HAProxy(directory, "127.0.0.1", port).list_slots() == [ServerSlot(1, "127.0.0.1:9")]
    running.__del__()


def test_a_front_that_is_killed_loses_no_request(
    registry: str, two_addresses: tuple[str, str], home: Path
) -> None:
    port = free_port()
    directory = directory_below(home, port)

    def start_front() -> subprocess.Popen[str]:
        command = [sys.executable, str(FRONT_SCRIPT), str(port), registry, *two_addresses]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    first = start_front()
    running, looker = find_haproxy(directory), HAProxy(directory, "127.0.0.1", port)
    slots = looker.list_slots()
    with ClientLoad(f"http://127.0.0.1:{port}") as load:
        wait_until(lambda: load.seen[200] > 20)
        first.kill()
        first.communicate()
        second = start_front()
        before = load.seen[200]
        wait_until(lambda: load.seen[200] > before + 20)
    assert set(load.seen) == {200}
    assert find_haproxy(directory) == running
    assert looker.list_slots() == slots and len(slots) == 2
    second.communicate(timeout=60)
    assert second.returncode == 0
    running.wait(60)


def test_who_is_silent_is_taken_out_and_its_counts_stay(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "HEARTBEAT_TIMEOUT_SECONDS", 0.2)
    counts = {("bertha_batches_total", ()): 3.0, ("bertha_waiting_requests", ()): 2.0}
    with balanced(tmp_path) as (haproxy, url, _):
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


def test_haproxy_that_cannot_listen_says_so(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(HAProxyError, match="did not start"):
            HAProxy(tmp_path, "127.0.0.1", holder.getsockname()[1]).start()


def test_tls(tmp_path: Path) -> None:
    port = free_port()
    certificate = certified(tmp_path / "both of them.pem")
    haproxy = HAProxy(tmp_path / "run", "127.0.0.1", port, certificate)
    haproxy.start()
    try:
        response = httpx.get(f"https://127.0.0.1:{port}/info", verify=False, trust_env=False)
        assert response.json() == {"error": "no replica is ready; try again"}
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"https://127.0.0.1:{port}/info", trust_env=False)
        # The command that serves asks its own server, whatever name the certificate is for.
        with RawReplica(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]") as replica:
            haproxy.enable_slot(ServerSlot(1, replica.address))
            url = client.service_url("127.0.0.1", port, "https")
            client.wait_until_healthy(url, certificate)
            assert client.predict_text(url, "a film", certificate) == []
            with pytest.raises(client.ServiceError, match="certificate"):
                client.predict_text(url, "a film", certified(tmp_path / "another.pem"))
    finally:
        haproxy.stop()
