"""A load generator that costs little: one process, keep-alive connections, C parsers.

Closed loop: a fixed number of connections, each sends again when it is answered. Open loop:
requests are due at the times of a seeded Poisson process, or evenly, answered earlier ones or not,
and latency counts from the time that a request was due, so a stalled server cannot hide it (no
coordinated omission). It sends the bodies of a file to one path and counts the responses. SIGTERM
ends the load early, in order.

    python benchmarks/load.py --port 8000 --path /predict --bodies bodies.json --concurrency 32
    python benchmarks/load.py --port 8000 --path /predict --bodies bodies.json --rate 50

bodies.json is a list of strings. Prints one JSON object.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import httptools
import uvloop
from outcomes import Outcome, Tally, cpu_seconds, summarize_load

DRAIN_SECONDS = 15.0  # for responses that are pending at the end
MAX_CONNECTIONS = 512  # of the open loop; beyond it requests wait here, and the wait counts


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self, load: "LoadGenerator") -> None:
        self._load = load
        self._transport: Any = None
        self.due = self._sent = 0.0
        self.busy = False
        self._expiry: asyncio.TimerHandle | None = None
        self._parser = httptools.HttpResponseParser(self)

    def send_request(self, request: bytes, due: float) -> None:
        """Send a request. due: when it should have been sent, in seconds from the start."""
        self.busy, self.due, self._sent = True, due, self._load.elapsed()
        self._parser = httptools.HttpResponseParser(self)
        self._expiry = self._load.call_after_timeout(self._expire)
        self._transport.write(request)

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse a part of a response."""
        if not self.busy:  # a server gives up a connection that was never used: 408
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end(0, "no HTTP")
            self._transport.abort()

    def on_message_complete(self) -> None:
        """Record a whole response; called by the parser."""
        if not self._parser.should_keep_alive():
            self._load.on_connection_lost(self)
            self._transport.abort()
        self._end(self._parser.get_status_code(), "")

    def connection_lost(self, error: Exception | None) -> None:
        """Record a failure if a response was awaited."""
        self._load.on_connection_lost(self)
        if self.busy:
            self._end(0, type(error).__name__ if error else "closed without an answer")

    def _expire(self) -> None:
        self._load.on_connection_lost(self)
        self._end(0, "no answer in time")
        self._transport.abort()

    def _end(self, status: int, failure: str) -> None:
        if not self.busy:
            return
        self.busy = False
        if self._expiry is not None:
            self._expiry.cancel()
        load = self._load
        load.record(Outcome(self.due, self._sent, load.elapsed(), status), failure)
        load.on_response(self)


class LoadGenerator:
    """Sends requests for a number of seconds, over many connections.

    timeout: seconds after which a request that was sent counts as failed; None for never. log: of
    every outcome as it comes, a JSON list a line: when it was due (Unix time), its status, the
    seconds it took, how it failed.
    """

    def __init__(
        self,
        address: tuple[str, int],
        requests: Sequence[bytes],
        seconds: float,
        timeout: float | None = None,
        log: TextIO | None = None,
    ) -> None:
        self.tally = Tally()
        self._timeout, self._log = timeout, log
        self._ended = asyncio.Event()
        self._address, self._requests, self._seconds = address, requests, seconds
        self._waiting: deque[float] = deque()  # due, but no connection is free
        self._free: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed_loop = False
        self._next = 0
        self._started = time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def seconds(self) -> float:
        """How long it sends, or has sent where it was stopped early."""
        return self._seconds

    def record(self, outcome: Outcome, failure: str) -> None:
        """Count an outcome. failure: how it came to no answer; "" where there was one."""
        self.tally.outcomes.append(outcome)
        if failure:
            self.tally.failures[failure] += 1
        if self._log is not None:
            due = time.time() - self.elapsed() + outcome.due
            took = outcome.done - outcome.due
            row = [round(due, 3), outcome.status, round(took, 3), failure]
            self._log.write(f"{json.dumps(row)}\n")

    def stop(self) -> None:
        """Send no more requests; those under way are awaited."""
        self._seconds = min(self._seconds, self.elapsed())
        self._ended.set()

    def call_after_timeout(self, expire: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Call `expire` when a request that is sent now has had its time."""
        if self._timeout is None:
            return None
        return asyncio.get_running_loop().call_later(self._timeout, expire)

    async def run_closed_loop(self, concurrency: int) -> None:
        """Keep `concurrency` requests under way."""
        self._closed_loop = True
        self._started = time.perf_counter()
        for _ in range(concurrency):
            self._submit(self.elapsed())
        await self._wait_until(self._seconds)
        await self._drain()

    async def run_open_loop(self, moments: Sequence[float], concurrency: int) -> None:
        """Send a request at each of `moments`, in seconds from the start.

        concurrency: connections that are opened beforehand.
        """
        for _ in range(concurrency):
            await self._connect()
        self._started = time.perf_counter()
        for due in moments:
            while (wait := due - self.elapsed()) > 0 and not self._ended.is_set():
                await asyncio.sleep(wait)
            if self._ended.is_set():
                break
            self._submit(due)
        await self._wait_until(self._seconds)
        await self._drain()

    def on_response(self, connection: Connection) -> None:
        """Reuse a connection that is free again."""
        if connection in self._all:
            self._free.append(connection)
        if self._closed_loop and self.elapsed() < self._seconds:
            self._submit(self.elapsed())
        elif self._waiting and connection in self._all:
            self._submit(self._waiting.popleft())

    def on_connection_lost(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def _submit(self, due: float) -> None:
        if self._free:
            request = self._requests[self._next % len(self._requests)]
            self._next += 1
            self.tally.num_sent += 1
            self._free.pop().send_request(request, due)
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
                now = self.elapsed()
                self.record(Outcome(due, now, now, 0), f"no connection: {type(error).__name__}")
            await asyncio.sleep(0.05)  # so that the closed loop does not spin
            if self._closed_loop and self.elapsed() < self._seconds:
                self._submit(self.elapsed())
            return
        self._all.add(connection)
        self._free.append(connection)
        if self._waiting:
            self._submit(self._waiting.popleft())

    async def _wait_until(self, moment: float) -> None:
        """Wait until a moment in seconds from the start, or until `stop`."""
        while (wait := moment - self.elapsed()) > 0 and not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), wait)

    async def _drain(self) -> None:
        """Wait for open requests, and count the rest as never answered."""
        give_up = time.perf_counter() + DRAIN_SECONDS
        while time.perf_counter() < give_up and self._num_pending():
            await asyncio.sleep(0.02)
        for due in [*self._waiting, *(each.due for each in self._all if each.busy)]:
            self.record(Outcome(due, 0.0, self.elapsed(), 0), "never answered")
        for connection in list(self._all):
            connection.busy = False
            connection.close()

    def _num_pending(self) -> int:
        return len(self._waiting) + sum(connection.busy for connection in self._all)


def build_requests(
    bodies: Sequence[str], host: str, path: str, headers: Sequence[str]
) -> list[bytes]:
    """Return the bytes of a POST request for each body."""
    lines = "".join(f"{header}\r\n" for header in headers)
    requests = []
    for body in bodies:
        data = body.encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n{lines}\r\n"
        )
        requests.append(head.encode() + data)
    return requests


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the arrival times of a Poisson process, in seconds."""
    rng, moment, moments = random.Random(seed), 0.0, []
    while (moment := moment + rng.expovariate(rate)) < seconds:
        moments.append(moment)
    return moments


def even_arrivals(rate: float, seconds: float) -> list[float]:
    """Return arrival times at equal distances, in seconds."""
    return [number / rate for number in range(math.ceil(rate * seconds))]


async def run_load(options: argparse.Namespace) -> tuple[Tally, float]:
    """Send the load that the command line describes; return its outcomes and its seconds."""
    bodies = json.loads(options.bodies.read_text())
    random.Random(options.seed).shuffle(bodies)
    host = f"{options.host}:{options.port}"
    requests = build_requests(bodies, host, options.path, options.header)
    address = (options.host, options.port)
    log = options.outcomes.open("w", buffering=1) if options.outcomes else None
    load = LoadGenerator(address, requests, options.seconds, options.timeout, log)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
    if options.rate:
        moments = (
            even_arrivals(options.rate, options.seconds)
            if options.even
            else poisson_arrivals(options.rate, options.seconds, options.seed)
        )
        await load.run_open_loop(moments, options.concurrency)
    else:
        await load.run_closed_loop(options.concurrency)
    return load.tally, load.seconds


def main() -> None:
    """Generate the load and print its results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/predict")
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON list of strings")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE")
    parser.add_argument("--concurrency", type=int, default=1, help="connections")
    parser.add_argument("--rate", type=float, help="requests a second; default: a closed loop")
    parser.add_argument("--even", action="store_true", help="at equal distances, not at random")
    parser.add_argument("--timeout", type=float, help="of a request; default: none")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by-second", action="store_true")
    parser.add_argument("--outcomes", type=Path, metavar="FILE", help="a line for each request")
    options = parser.parse_args()
    before = cpu_seconds()
    tally, seconds = uvloop.run(run_load(options))
    results = summarize_load(tally, seconds, options.by_second)
    print(json.dumps(results | {"client_cpu_seconds": cpu_seconds() - before}))


if __name__ == "__main__":
    main()
