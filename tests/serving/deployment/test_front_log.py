"""One id and one line a request, from the front to the replica, over real sockets."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.deployment.config import EndpointConfig
from serving.deployment.front_log import HAProxyLog, print_lines
from serving.deployment.haproxy import HAProxy, ServerSlot
from serving.deployment.server import ReplicaServer
from serving.http.log_lines import access, configure_logs
from tests.support.haproxies import free_port, send_raw
from tests.support.model_servers import make_registry

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[int]:
    """A pipe at tmp_path/log; reading from it waits for the next lines."""
    before = access.handlers, access.propagate, logging.getLogger().handlers
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDWR)
    yield reader
    os.close(reader)
    access.handlers, access.propagate, logging.getLogger().handlers = before


def next_lines(reader: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(reader, 65536).splitlines()]


@pytest.fixture
def url(tiny_classifier: Path, tmp_path: Path, pipe: int) -> Iterator[str]:
    """An endpoint of HAProxy and one replica, without Ray, that logs to the pipe."""
    registry = make_registry(tmp_path / "registry", tiny_classifier)
    config = EndpointConfig(registry=registry.address, log_requests=True, log_file=tmp_path / "log")
    server, port = ReplicaServer(config, "127.0.0.1"), free_port()
    server.start()
    haproxy = HAProxy(tmp_path / "haproxy", "127.0.0.1", port, logs=True)
    haproxy.start()
    configure_logs("text", tmp_path / "log")
    HAProxyLog(tmp_path / "haproxy").start()
    haproxy.enable_slot(ServerSlot(1, server.address))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        haproxy.stop()
        server.stop()


@pytest.mark.parametrize(
    "given", [None, "mine-7", "with space", "x" * 300, "caf\u00e9", "", "a\tb"]
)
def test_front_and_replica_know_a_request_by_one_id(url: str, given: str | None, pipe: int) -> None:
    headers = {} if given is None else {"x-request-id": given.encode("latin-1")}
    with httpx.Client(base_url=url, trust_env=False) as client:
        answered = client.post(
            "/predict", json={"inputs": ["a warm film", "dull"]}, headers=headers
        )
        assert answered.status_code == 200
        (line,) = next_lines(pipe)  # and not a second of the front
        assert answered.headers.get_list("x-request-id") == [line["request_id"]]
        if given in ("mine-7", "with space", "x" * 300):
            assert line["request_id"] == given[:128]
        else:
            assert len(line["request_id"]) == 36
        found = {key: line[key] for key in ("model", "version", "status", "texts", "client")}
        assert found == {
            "model": "tiny",
            "version": "1",
            "status": 200,
            "texts": 2,
            "client": "127.0.0.1",
        }
        assert line["tokens"] > 4 and "warm" not in json.dumps(line)
        refused = client.get("/-/replica", headers=headers)  # by the front itself
        assert refused.status_code == 404
        (line,) = next_lines(pipe)
        assert (line["protocol"], line["status"], line["client"]) == ("front", 404, "127.0.0.1")
        assert refused.headers.get_list("x-request-id") == [line["request_id"]]


def test_who_says_another_address_is_logged_by_his_own(url: str, pipe: int) -> None:
    with httpx.Client(base_url=url, trust_env=False) as client:
        client.get("/info", headers={"x-forwarded-for": "8.8.8.8"})
    (line,) = next_lines(pipe)
    assert line["client"] == "127.0.0.1"


def test_what_is_no_http_is_a_line_and_a_bare_connection_none(url: str, pipe: int) -> None:
    port = int(url.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    assert send_raw(port, b"\x16\x03\x01 garbage\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    (line,) = next_lines(pipe)
    assert (line["protocol"], line["status"]) == ("front", 400)


def test_lines_of_other_processes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with print_lines(tmp_path / "pipe") as pipe:
        for number in range(2):  # one writer ends before the next begins
            with pipe.open("ab") as file:
                file.write(b'{"number": %d}\n' % number)
    assert capsys.readouterr().out == '{"number": 0}\n{"number": 1}\n'
    assert not pipe.exists()
