"""Answers that leave whole: head and body in one write.

uvicorn writes the head of an answer before its body. A replica that is killed between the two has
begun an answer that no other can go on with, and HAProxy sends nothing again; killed before the one
write, it has said nothing, and the request goes to another replica.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Joined:
    """A transport whose writes of one turn of the event loop leave as one; else as `transport`."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write `data` when this turn ends."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)

    def close(self) -> None:
        """Close behind what is held."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))


class WholeAnswers(HttpToolsProtocol):
    """uvicorn's protocol over httptools, on a transport that joins."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's."""
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]
