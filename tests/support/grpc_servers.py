"""Models behind a gRPC server on this machine, in a thread."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from serving.http.asgi import App
from serving.http.grpc_server import GRPCServer
from serving.protocols.oip_grpc.service import PROTOCOL, STREAMS


@dataclass
class GRPCEndpoint:
    """Where the server answers, and how to end it before the end of the block."""

    address: str
    begin_end: Callable[[], None]


@contextlib.contextmanager
def serve_grpc(models: Any, **options: Any) -> Iterator[GRPCEndpoint]:
    """Serve `models` by an `App` with `options`."""
    started: concurrent.futures.Future[GRPCEndpoint] = concurrent.futures.Future()

    async def run() -> None:
        loop, is_ending = asyncio.get_running_loop(), asyncio.Event()
        app = App([PROTOCOL], models, **options)
        server = GRPCServer(app, PROTOCOL.routes, STREAMS, models.limits.max_body_bytes)
        address = await server.start("127.0.0.1")
        started.set_result(
            GRPCEndpoint(address, lambda: loop.call_soon_threadsafe(is_ending.set) and None)
        )
        await is_ending.wait()
        server.begin_end(10)
        await server.ended

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    endpoint = started.result(30)
    try:
        yield endpoint
    finally:
        with contextlib.suppress(RuntimeError):  # the test has ended it, and its loop is closed
            endpoint.begin_end()
        thread.join(30)
        assert not thread.is_alive()
