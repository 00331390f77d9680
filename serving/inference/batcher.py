"""Dynamic batching: the rows of many requests become few calls of the models, in one thread.

The engine thread takes its next batch itself the moment it is free, so it never waits for the event
loop, and an idle one starts a request at once: there is no timer. What nobody waits for any more,
or what is past its deadline, is dropped before it costs anything. Knows no Ray, no HTTP, no model.

    batcher = Batcher(max_waiting_requests=32, max_waiting_tokens=32768)
    answers, waited = await batcher.submit(engine, rows)
"""

import asyncio
import math
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from serving.inference.queue import Lanes, Row

# A request is due this many times its own work after it came. With 1 the order is nearly that of
# arrival; the higher, the more small requests overtake large ones.
PATIENCE = 4.0
_SMOOTHING = 0.2  # of the speed, by batch


class Infers(Hashable, Protocol):
    """A model: rows of one batch to as many answers, in order.

    batch_tokens: most tokens of a batch; a longer row goes alone.
    """

    batch_tokens: int

    def infer_rows(self, rows: Sequence[np.ndarray]) -> Sequence[Any]:
        """Called in the engine thread, one call at a time."""


class Overloaded(Exception):
    """Too much is waiting; try again after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: int) -> None:
        plural = "s" if retry_after_seconds > 1 else ""
        super().__init__(
            f"the model is overloaded; try again in {retry_after_seconds} second{plural}"
        )
        self.retry_after_seconds = retry_after_seconds


class BatchFailed(Exception):
    """The model raised on the batch this request was in; `__cause__` is what it raised."""


class Late(Exception):
    """The deadline of the request passed before the model came to it."""


class Closed(Exception):
    """The batcher takes no more requests."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One `submit`: its answers so far and the promise of all of them.

    started: when the model first took a row of it; like deadline, on the clock of
    `time.perf_counter`.
    """

    promise: asyncio.Future[None]
    num_rows: int
    deadline: float | None
    started: float = 0.0
    answers: dict[int, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Meter:
    """What the engine thread has done, for one model or for all.

    busy_seconds: inside the models.
    """

    num_batches: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    busy_seconds: float = 0.0
    num_failed: int = 0


class Batcher:
    """Batches the rows of concurrent `submit` calls. Made in, and belongs to, one event loop.

    max_waiting_requests, max_waiting_tokens: beyond either, `submit` raises Overloaded, unless
    nothing waits at all.
    """

    def __init__(self, max_waiting_requests: int, max_waiting_tokens: int) -> None:
        self.meters: WeakKeyDictionary[Infers, Meter] = WeakKeyDictionary()  # by model
        self.total = Meter()
        self._lanes = Lanes(attrgetter("batch_tokens"))
        self._max_requests, self._max_tokens = max_waiting_requests, max_waiting_tokens
        self._num_requests = 0
        self._seconds_per_token = 1e-4
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests whose answers are not complete."""
        return self._num_requests

    async def submit(
        self,
        model: Infers,
        rows: Sequence[np.ndarray],
        deadline: float | None = None,
        admitted: bool = False,
    ) -> tuple[list[Any], float]:
        """The answers to `rows`, in order, and the seconds they waited for the model.

        deadline: on the clock of `time.perf_counter`. admitted: however much waits. Raises
        Overloaded, BatchFailed where the model raised, Late, and Closed. A cancelled call leaves
        the queue at once.
        """
        if not rows:
            return [], 0.0
        num_tokens = sum(map(len, rows))
        if not admitted:
            self._admit(num_tokens)
        now = time.perf_counter()
        ticket = Ticket(self._loop.create_future(), len(rows), deadline)
        due = now + PATIENCE * num_tokens * self._seconds_per_token
        with self._changed:
            for position, values in enumerate(rows):
                self._lanes.add(Row(model, values, due, ticket, position))
            self._changed.notify()
        self._num_requests += 1
        try:
            await ticket.promise
        finally:
            self._num_requests -= 1
            if len(ticket.answers) < len(rows):
                with self._changed:
                    self._lanes.discard(ticket)
        answers = [ticket.answers[position] for position in range(len(rows))]
        return answers, ticket.started - now

    async def close(self) -> None:
        """Refuse new requests, answer those that wait, and end the engine thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await self._loop.run_in_executor(None, self._thread.join)
        await asyncio.sleep(0)  # what the thread promised last

    def _admit(self, num_tokens: int) -> None:
        if self._closed:
            raise Closed("the server is ending")
        waiting = self._lanes.num_tokens
        many = self._num_requests >= self._max_requests
        if many or (waiting and waiting + num_tokens > self._max_tokens):
            seconds = waiting * self._seconds_per_token
            raise Overloaded(max(1, math.ceil(seconds)))

    def _work(self) -> None:
        """The engine thread: batch after batch, until closed and nothing waits."""
        while batch := self._next_batch():
            started = time.perf_counter()
            for row in batch:
                row.ticket.started = row.ticket.started or started
            model: Any = batch[0].owner
            try:
                answers = model.infer_rows([row.values for row in batch])
                if len(answers) != len(batch):
                    raise RuntimeError(f"{len(answers)} answers to {len(batch)} rows")
            except Exception as error:  # whatever a model raises, the requests in it are told
                self._count(model, batch, time.perf_counter() - started, failed=True)
                self._discard(batch)
                self._tell(self._fail, batch, error)
                continue
            self._count(model, batch, time.perf_counter() - started)
            self._tell(self._settle, batch, answers)

    def _next_batch(self) -> list[Row]:
        """Wait for rows and take them; [] when closed and nothing waits."""
        while True:
            with self._changed:
                batch = self._lanes.take()
                while not batch:
                    if self._closed:
                        return []
                    self._changed.wait()
                    batch = self._lanes.take()
            now = time.perf_counter()
            late = [row for row in batch if (row.ticket.deadline or now) < now]
            if not late:
                return batch
            self._tell(self._give_up, late)
            kept = [row for row in batch if row not in late]
            if kept:
                return kept

    def _discard(self, batch: list[Row]) -> None:
        """Take out what waits of the requests that are in `batch`: they have failed."""
        with self._changed:
            for ticket in {id(row.ticket): row.ticket for row in batch}.values():
                self._lanes.discard(ticket)

    def _tell(self, tell: Any, *what: Any) -> None:
        """Call `tell` in the event loop, if that still runs."""
        try:
            self._loop.call_soon_threadsafe(tell, *what)
        except RuntimeError:  # the loop was closed: nobody is left to be told
            self._closed = True

    def _count(self, model: Infers, batch: list[Row], seconds: float, failed: bool = False) -> None:
        num_tokens = sum(len(row.values) for row in batch)
        for meter in (self.total, self.meters.setdefault(model, Meter())):
            meter.num_batches += 1
            meter.num_rows += len(batch)
            meter.num_tokens += num_tokens
            meter.busy_seconds += seconds
            meter.num_failed += failed
        speed = seconds / max(1, num_tokens)
        self._seconds_per_token += _SMOOTHING * (speed - self._seconds_per_token)

    def _settle(self, batch: list[Row], answers: Sequence[Any]) -> None:
        """Hand the answers of a batch to the requests that were in it."""
        for row, answer in zip(batch, answers, strict=True):
            ticket: Ticket = row.ticket
            ticket.answers[row.position] = answer
            if len(ticket.answers) == ticket.num_rows and not ticket.promise.done():
                ticket.promise.set_result(None)

    def _fail(self, batch: list[Row], error: BaseException) -> None:
        for row in batch:
            if not row.ticket.promise.done():
                failure = BatchFailed(f"the model failed: {type(error).__name__}")
                failure.__cause__ = error
                row.ticket.promise.set_exception(failure)

    def _give_up(self, late: list[Row]) -> None:
        for row in late:
            if not row.ticket.promise.done():
                row.ticket.promise.set_exception(Late("the deadline passed while it waited"))
