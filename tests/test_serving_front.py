"""HAProxy and replicas that are processes: killed, drained, added; no request is lost."""

import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from houses import registry_of
from tiny_bundle import write_tiny_bundle

from serving import front
from serving.front import Beat, Replicas
from serving.haproxy import HAProxy, HAProxyError, configuration

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "replica_process.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> str:
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("front") / "bundle", tiny_bert)
    return registry_of(tmp_path_factory.mktemp("registry"), bundle).address


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


class Load:
    """Clients that ask without a pause, and count what they get."""

    def __init__(self, url: str, num_clients: int = 4) -> None:
        self.seen: Counter[object] = Counter()
        self._url, self._over = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._over.is_set():
                try:
                    response = client.post("/predict", json={"inputs": "a warm film"})
                    self.seen[response.status_code] += 1
                except httpx.HTTPError as error:
                    self.seen[type(error).__name__] += 1


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
        replicas = Replicas(haproxy)
        first, second = Beat(one.address()), Beat(two.address())
        assert (replicas.beat(first), replicas.beat(second)) == (1, 2)
        with Load(url) as load:
            time.sleep(1)
            one.process.kill()
            time.sleep(1)
            three = Process(registry)
            third = Beat(three.address())
            replicas.beat(third)
            replicas.leave(first.address)
            adopted = Replicas(HAProxy.start(short, "127.0.0.1", port))  # as a front does anew
            time.sleep(1)
            adopted.drain(second.address)
            time.sleep(0.3)
            two.end()
            adopted.leave(second.address)
            time.sleep(1)
        assert set(load.seen) == {200}
        assert load.seen[200] > 100
        assert adopted.beat(third) == 1
        three.end()
    one.process.communicate()


def test_who_is_silent_is_taken_out_and_its_counts_stay(
    registry: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "SILENCE_SECONDS", 0.2)
    counts = {("bertha_batches_total", ()): 3.0, ("bertha_waiting_requests", ()): 2.0}
    with balanced(short) as (haproxy, url, _):
        replicas = Replicas(haproxy)
        replicas.beat(Beat("127.0.0.1:9", counts))
        assert [slot.address for slot in haproxy.slots()] == ["127.0.0.1:9"]
        time.sleep(0.3)
        replicas.bury()
        assert haproxy.slots() == []
        assert replicas.counts() == {
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


def test_tls_is_a_word_in_the_configuration(tmp_path: Path) -> None:
    text = configuration(tmp_path, "::1", 8443, tmp_path / "cert.pem")
    assert f"bind [::1]:8443 ssl crt {tmp_path}/cert.pem" in text
    assert "ssl" not in configuration(tmp_path, "127.0.0.1", 80)
