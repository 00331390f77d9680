"""Answers leave in one write, so that a replica that is killed has said all or nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.deployment.server import CoalescingTransport, SingleWriteProtocol


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
