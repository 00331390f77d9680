"""One replica's server: its connections, the names it answers to, and the rates of its keys.

Answers leave in one write, so that a replica that is killed has said all or nothing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.deployment.config import EndpointConfig
from serving.deployment.server import CoalescingTransport, ReplicaServer, SingleWriteProtocol
from serving.http.keys import KeyFileError, add_key
from serving.registry.registry import Registry
from tests.support.model_servers import make_registry
from tests.support.tiny_bundle import write_tiny_bundle


class Wire(asyncio.Transport):
    """A transport that keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def answer(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    head = [(b"content-length", b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"film"})


@pytest.mark.parametrize("closes", [False, True])
def test_head_and_body_are_one_write(closes: bool) -> None:
    async def asked() -> Wire:
        config = uvicorn.Config(answer, http=SingleWriteProtocol, ws="none", lifespan="off")
        config.load()
        protocol, wire = SingleWriteProtocol(config, ServerState(), {}), Wire()
        protocol.connection_made(wire)
        more = b"Connection: close\r\n" if closes else b""
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: here\r\n" + more + b"\r\n")
        for _ in range(10):
            await asyncio.sleep(0)
        assert wire.closed is closes
        protocol.connection_lost(None)
        return wire

    wire = asyncio.run(asked())
    (whole,) = wire.writes
    assert whole.startswith(b"HTTP/1.1 200 OK\r\n") and whole.endswith(b"\r\n\r\nfilm")


def received(*chunks: bytes) -> tuple[bytes, bool, list[str]]:
    """What is written for these chunks, whether the connection ends, and the paths asked for."""
    paths: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await answer(scope, receive, send)

    async def run() -> tuple[bytes, bool]:
        config = uvicorn.Config(app, http=SingleWriteProtocol, ws="none", lifespan="off")
        config.load()
        protocol, wire = SingleWriteProtocol(config, ServerState(), {}), Wire()
        protocol.connection_made(wire)
        for chunk in chunks:
            if not wire.closed:
                protocol.data_received(chunk)
                for _ in range(10):
                    await asyncio.sleep(0)
        closed = wire.closed
        protocol.connection_lost(None)
        return b"".join(wire.writes), closed

    return *asyncio.run(run()), paths


@pytest.mark.parametrize(
    "begin", [b"GET / HTTP/1.1\r\nx: ", b"GET /?", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 99]
)
def test_a_head_that_does_not_end_is_refused(begin: bytes) -> None:
    more = b"a: b\r\n" * 1500 if begin.endswith(b"\n") else b"a" * 9000
    written, closed, paths = received(begin, *[more] * 100)
    assert written.startswith(b"HTTP/1.1 400 ")
    assert json.loads(written.partition(b"\r\n\r\n")[2]).keys() == {"error"}
    assert closed and paths == []


def test_a_large_body_in_many_pieces_is_no_head() -> None:
    head = b"POST /%d HTTP/1.1\r\nhost: here\r\ncontent-length: 900000\r\n"
    chunks = []
    for number in range(3):
        chunks += [head % number, b"x: y\r\n\r\n", *[b"a" * 9000] * 100]
    written, closed, paths = received(*chunks)
    assert paths == ["/0", "/1", "/2"] and not closed
    assert written.count(b"HTTP/1.1 200 OK") == 3


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Registry:
    place = tmp_path_factory.mktemp("server")
    return make_registry(place / "registry", write_tiny_bundle(place / "bundle", tiny_bert))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("settings", "answered"),
    [
        ({}, {"evil.com": 421, "localhost": 200, "box.lan": 421}),
        ({"allowed_hosts": ["box.lan"]}, {"evil.com": 421, "localhost": 200, "box.lan:1": 200}),
        ({"host": "0.0.0.0"}, {"evil.com": 200}),
        ({"host": "10.0.0.1", "allowed_hosts": ["box.lan"]}, {"evil.com": 421, "10.0.0.1": 200}),
    ],
)
def test_a_replica_answers_to_the_names_of_its_endpoint(
    settings: dict[str, Any], answered: dict[str, int], registry: Registry
) -> None:
    server = ReplicaServer(EndpointConfig(registry=registry.address, **settings), "127.0.0.1")
    server.start()
    try:
        with httpx.Client(base_url=f"http://{server.address}", trust_env=False) as client:
            found = {
                host: client.get(path, headers={"host": host}).status_code
                for host in answered
                for path in ("/", "/health", "/info")
            }
            assert found == answered
            assert client.get("/health").status_code == 200 or "10.0.0.1" in answered
    finally:
        server.stop()


@pytest.mark.multiprocess
def test_a_replica_allows_a_key_its_share_of_the_rate(registry: Registry, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "mine", ("inference",), requests_per_second=1e-3)
    endpoint = EndpointConfig(registry=registry.address, keys=tmp_path / "keys", max_replicas=4)
    server = ReplicaServer(endpoint, "127.0.0.1")
    server.start()
    try:
        with httpx.Client(base_url=f"http://{server.address}", trust_env=False) as client:
            client.headers["authorization"] = f"Bearer {key}"
            assert client.get("/info").status_code == 200
            of_four = int(client.get("/info").headers["retry-after"])
            server.share_rates(1)
            alone = int(client.get("/info").headers["retry-after"])
    finally:
        server.stop()
    assert 3900 < of_four <= 4000 and 900 < alone <= 1000


def test_keys_that_others_may_write_are_refused_before_anything_starts(
    registry: Registry, tmp_path: Path
) -> None:
    add_key(tmp_path / "keys", "mine", ("inference",))
    (tmp_path / "keys").chmod(0o666)
    with pytest.raises(KeyFileError, match="others may write to it"):
        ReplicaServer(
            EndpointConfig(registry=registry.address, keys=tmp_path / "keys"), "127.0.0.1"
        )


def test_turns_are_apart_and_nothing_is_lost_on_closing() -> None:
    async def written() -> Wire:
        wire = Wire()
        joined = CoalescingTransport(wire, asyncio.get_running_loop())
        joined.write(b"a")
        joined.write(b"b")
        await asyncio.sleep(0)
        joined.write(b"c")
        joined.close()
        await asyncio.sleep(0)
        assert joined.is_closing()
        return wire

    wire = asyncio.run(written())
    assert wire.writes == [b"ab", b"c"] and wire.closed
