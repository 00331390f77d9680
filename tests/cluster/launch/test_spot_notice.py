"""A spot notice, from a metadata service that wants tokens to a node that drains."""

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.__main__ import main
from cluster.launch import spot_notice
from cluster.launch.spot_notice import (
    InstanceMetadata,
    SpotNotice,
    WatchError,
    parse_notice,
    watch_for_notice,
)

AT = datetime(2026, 11, 20, 8, 22, 0, tzinfo=UTC)
NOTICE = json.dumps({"action": "terminate", "time": "2026-11-20T08:22:00Z"})


class Service:
    """A metadata service. answers: (status, body) one after another, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = [(404, "")]
        self.tokens: list[str] = []
        self.asked = 0

    def answer(self) -> tuple[int, str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    service: Service

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert 0 < int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
        self.service.tokens.append(f"token-{len(self.service.tokens)}")
        self._send(200, self.service.tokens[-1])

    def do_GET(self) -> None:
        token = self.headers.get("X-aws-ec2-metadata-token")
        if not self.service.tokens or token != self.service.tokens[-1]:
            self._send(401, "")
        elif self.path == "/latest/meta-data/spot/instance-action":
            self._send(*self.service.answer())
        else:
            self._send(400, "")

    def _send(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    """A metadata service on loopback, and its address."""
    held = Service()
    handler = type("OfTest", (Handler,), {"service": held})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield held, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_no_notice_is_none_and_the_token_is_fetched_once(service: tuple[Service, str]) -> None:
    held, address = service
    metadata = InstanceMetadata(address)
    assert [metadata.fetch_notice() for _ in range(3)] == [None] * 3
    assert held.tokens == ["token-0"]
    held.tokens.append("another")  # as when the first has expired
    assert metadata.fetch_notice() is None
    assert len(held.tokens) == 3


def test_a_notice_is_passed_on_with_the_seconds_left(service: tuple[Service, str]) -> None:
    held, address = service
    held.answers = [(404, ""), (503, ""), (404, ""), (200, NOTICE)]
    told: list[tuple[str, int]] = []
    slept: list[float] = []
    now = AT - timedelta(seconds=117)
    notice = watch_for_notice(
        InstanceMetadata(address), lambda *what: told.append(what), 5, lambda: now, slept.append
    )
    assert notice == SpotNotice("terminate", AT)
    assert told == [("EC2 will terminate this spot machine at 08:22:00", 117)]
    assert slept == [5, 5, 5] and held.asked == 4


def test_a_drain_that_fails_is_tried_again(service: tuple[Service, str]) -> None:
    held, address = service
    held.answers = [(200, NOTICE)]
    tries: list[int] = []

    def drain(message: str, seconds: int) -> None:
        tries.append(seconds)
        if len(tries) < 3:
            raise WatchError("ray is busy")

    watch_for_notice(
        InstanceMetadata(address), drain, 0, lambda: AT + timedelta(seconds=9), lambda _: None
    )
    assert tries == [0, 0, 0]


def test_a_process_watches_beside_its_work(
    service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, address = service
    held.answers = [(200, NOTICE)]
    told: list[str] = []
    monkeypatch.setenv(spot_notice.VARIABLE, address)
    monkeypatch.setattr(
        spot_notice, "drain_this_node", lambda message, seconds: told.append(message)
    )
    spot_notice.start_watcher().join(10)
    assert told == ["EC2 will terminate this spot machine at 08:22:00"]
    monkeypatch.setenv(spot_notice.VARIABLE, "http://127.0.0.1:1")
    elsewhere = spot_notice.start_watcher()
    elsewhere.join(10)
    assert not elsewhere.is_alive() and len(told) == 1


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"action": "stop"}', '{"time": "soon"}'])
def test_a_notice_that_cannot_be_read_is_said(body: str) -> None:
    with pytest.raises(WatchError, match="cannot be read"):
        parse_notice(body)


def test_a_machine_without_the_service_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--metadata", "http://127.0.0.1:1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no metadata service at 127.0.0.1:1") and said.count("\n") == 1


def present() -> set[str]:
    """Nodes that Ray places work on."""
    leaving = ray._private.state.state.get_draining_nodes()
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]} - set(leaving)


@pytest.mark.ray
def test_ray_drains_the_node_that_is_told_to(
    service: tuple[Service, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    held, address = service
    soon = datetime.now(UTC) + timedelta(seconds=90)
    held.answers = [(404, ""), (200, json.dumps({"action": "stop", "time": soon.isoformat()}))]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        cluster.wait_for_nodes()
        head = {n["NodeID"] for n in ray.nodes() if "node:__internal_head__" in n["Resources"]}
        (other,) = {node["NodeID"] for node in ray.nodes()} - head
        ray.shutdown()
        told: list[tuple[str, str]] = []
        with monkeypatch.context() as patched:  # this process stands beside the head
            patched.setattr(
                spot_notice, "drain_node", lambda gcs, node, *_: told.append((gcs, node))
            )
            patched.setenv("RAY_ADDRESS", cluster.address)
            assert main(["watch", "--metadata", address, "--every", "0.1"]) == 0
        assert "Ray was told" in capsys.readouterr().out
        assert told == [(cluster.address, *head)]
        spot_notice.drain_node(cluster.address, other, "it will be taken away", 90)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        give_up = time.monotonic() + 60
        while other in present():  # nothing runs there, so it goes as soon as it may
            assert time.monotonic() < give_up, "the node takes work as before"
            time.sleep(0.2)
        assert present() == head
        with pytest.raises(WatchError, match=f"ray did not drain node {other[:-1]}x"):
            spot_notice.drain_node(cluster.address, f"{other[:-1]}x", "no such node", 90)
    finally:
        ray.shutdown()
        cluster.shutdown()
