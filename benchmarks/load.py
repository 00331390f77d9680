"""A load generator that costs little: one process, keep-alive connections, C parsers.

Closed loop: so many connections, each asks again when it is answered. Open loop: requests are due
at the moments of a seeded Poisson process, whether or not earlier ones were answered, and a latency
counts from the moment the request was due, so a server that stalls cannot hide it (no coordinated
omission). Knows no server: it sends the bodies of a file to one path and counts what comes back.

    python benchmarks/load.py --port 8000 --path /predict --bodies bodies.json --concurrency 32
    python benchmarks/load.py --port 8000 --path /predict --bodies bodies.json --rate 50

bodies.json is a list of strings. Prints one JSON object.
"""

import argparse
import asyncio
import json
import random
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httptools
import uvloop
from outcomes import Outcome, Tally, cpu_seconds, summary

DRAIN_SECONDS = 15.0  # for what is under way at the end
MAX_CONNECTIONS = 512  # of the open loop; beyond it requests wait here, and the wait counts


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._transport: Any = None
        self._due = self._sent = 0.0
        self.busy = False
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request that was due then."""
        self.busy, self._due, self._sent = True, due, self._load.now()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # a server gives up a connection that was never used: 408
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(0, "no HTTP")
            self._transport.abort()

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self._load.lost(self)
            self._transport.abort()
        self._end(self._parser.get_status_code(), "")

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self)
        if self.busy:
            self._end(0, type(error).__name__ if error else "closed without an answer")

    def _end(self, status: int, failure: str) -> None:
        if not self.busy:
            return
        self.busy = False
        load = self._load
        load.tally.outcomes.append(Outcome(self._due, self._sent, load.now(), status))
        if failure:
            load.tally.failures[failure] += 1
        load.answered(self)


class Load:
    """Sends requests until the time is up."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes], seconds: float) -> None:
        self.tally = Tally()
        self._address, self._requests, self._seconds = address, requests, seconds
        self._waiting: deque[float] = deque()  # due, but no connection is free
        self._free: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed_loop = False
        self._next = 0
        self._started = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    async def closed(self, concurrency: int) -> None:
        """Keep `concurrency` requests under way."""
        self._closed_loop = True
        self._started = time.perf_counter()
        for _ in range(concurrency):
            self._submit(self.now())
        await asyncio.sleep(self._seconds)
        await self._drain()

    async def open(self, moments: Sequence[float], concurrency: int) -> None:
        """Send a request at each of `moments`, seconds from the start. concurrency: connections
        that are opened beforehand."""
        for _ in range(concurrency):
            await self._connect()
        self._started = time.perf_counter()
        for due in moments:
            while (wait := due - self.now()) > 0:
                await asyncio.sleep(wait)
            self._submit(due)
        await asyncio.sleep(max(0.0, self._seconds - self.now()))
        await self._drain()

    def answered(self, connection: Connection) -> None:
        """A connection is free again."""
        if connection in self._all:
            self._free.append(connection)
        if self._closed_loop and self.now() < self._seconds:
            self._submit(self.now())
        elif self._waiting and connection in self._all:
            self._submit(self._waiting.popleft())

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def _submit(self, due: float) -> None:
        if self._free:
            request = self._requests[self._next % len(self._requests)]
            self._next += 1
            self.tally.num_sent += 1
            self._free.pop().ask(request, due)
            return
        self._waiting.append(due)
        if len(self._all) + len(self._opening) < MAX_CONNECTIONS:
            task = asyncio.ensure_future(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), *self._address)
        except OSError as error:
            if self._waiting:
                due = self._waiting.popleft()
                self.tally.outcomes.append(Outcome(due, self.now(), self.now(), 0))
            self.tally.failures[f"no connection: {type(error).__name__}"] += 1
            await asyncio.sleep(0.05)  # before the closed loop would spin
            if self._closed_loop and self.now() < self._seconds:
                self._submit(self.now())
            return
        self._all.add(connection)
        self._free.append(connection)
        if self._waiting:
            self._submit(self._waiting.popleft())

    async def _drain(self) -> None:
        """Wait for what is under way; what is not answered then has failed."""
        give_up = time.perf_counter() + DRAIN_SECONDS
        while time.perf_counter() < give_up and self._under_way():
            await asyncio.sleep(0.02)
        never = self._under_way()
        if never:
            self.tally.failures["never answered"] += never
        for connection in list(self._all):
            connection.busy = False
            connection.close()

    def _under_way(self) -> int:
        return len(self._waiting) + sum(connection.busy for connection in self._all)


def requests_of(bodies: Sequence[str], host: str, path: str, headers: Sequence[str]) -> list[bytes]:
    """The bytes of a POST for each body."""
    lines = "".join(f"{header}\r\n" for header in headers)
    made = []
    for body in bodies:
        data = body.encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n{lines}\r\n"
        )
        made.append(head.encode() + data)
    return made


def moments_of(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of a Poisson process."""
    draw, at, found = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(at)
    return found


async def run(options: argparse.Namespace) -> Tally:
    """Send the load that the command line describes."""
    bodies = json.loads(options.bodies.read_text())
    random.Random(options.seed).shuffle(bodies)
    host = f"{options.host}:{options.port}"
    requests = requests_of(bodies, host, options.path, options.header)
    load = Load((options.host, options.port), requests, options.seconds)
    if options.rate:
        moments = moments_of(options.rate, options.seconds, options.seed)
        await load.open(moments, options.concurrency)
    else:
        await load.closed(options.concurrency)
    return load.tally


def main() -> None:
    """Generate the load and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/predict")
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON list of strings")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE")
    parser.add_argument("--concurrency", type=int, default=1, help="connections")
    parser.add_argument("--rate", type=float, help="requests a second; default: a closed loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by-second", action="store_true")
    options = parser.parse_args()
    before = cpu_seconds()
    tally = uvloop.run(run(options))
    found = summary(tally, options.seconds, options.by_second)
    print(json.dumps(found | {"client_cpu_seconds": cpu_seconds() - before}))


if __name__ == "__main__":
    main()
