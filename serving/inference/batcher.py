"""Dynamic batching: combine the texts of concurrent requests into few calls of the models.

One engine thread takes its next batch itself the moment it is free, so it never waits for the
event loop, and an idle one starts at once: there is no batching timer. Of a model on a device
beside the host it takes the next batch while one is computed. Requests that were cancelled or have
timed out are dropped before they reach the model.

    batcher = Batcher(Limits())
    answers, waited = await batcher.submit(engine, rows)
"""

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np

from serving.inference.admission import PATIENCE, Admission
from serving.inference.queue import BatchQueue, QueuedText
from serving.interface import Limits


class BatchModel(Hashable, Protocol):
    """A model that answers batches.

    batch_tokens: most tokens of a batch; a longer text goes alone. tokens_per_second: as measured,
    0 where nothing was. overlaps: whether two batches may be under way. Its methods are called in
    the engine thread only.
    """

    batch_tokens: int
    tokens_per_second: float

    @property
    def overlaps(self) -> bool:
        """Whether `start_rows` returns before the batch is computed."""

    def start_rows(self, rows: Sequence[np.ndarray]) -> Callable[[], Sequence[Any]]:
        """Begin a batch; return what waits for one answer a row, in order, and returns them."""


class Overloaded(Exception):
    """Too much is waiting; try again after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"the model is overloaded; try again in {retry_after_seconds:.2g} seconds")
        self.retry_after_seconds = retry_after_seconds


class BatchFailed(Exception):
    """The model raised on the batch of this request; `__cause__` is what it raised."""


class DeadlineExceeded(Exception):
    """The deadline of the request passed before the model reached it."""


class BatcherClosed(Exception):
    """The batcher accepts no more requests."""


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One `submit`: the answers so far, and a future that completes with the last.

    due: its place in the order. num_waiting: tokens that no batch took yet. started: when the model
    took its first text; like due and deadline, on the clock of `time.perf_counter`.
    """

    future: asyncio.Future[None]
    num_rows: int
    due: float
    num_waiting: int
    deadline: float | None
    started: float = 0.0
    answers: dict[int, Any] = field(default_factory=dict)


@dataclass(slots=True)
class BatchStatistics:
    """What the engine thread has done, for one model or in total.

    busy_seconds: spent inside the models.
    """

    num_batches: int = 0
    num_rows: int = 0
    num_tokens: int = 0
    busy_seconds: float = 0.0
    num_failed: int = 0


@dataclass(slots=True)
class RunningBatch:
    """A batch that was begun at `started`; `wait` returns its answers."""

    model: BatchModel
    texts: list[QueuedText]
    started: float
    wait: Callable[[], Sequence[Any]]


class Batcher:
    """Batches the rows of concurrent `submit` calls. Belongs to the event loop that creates it.

    limits: `submit` raises Overloaded for what would wait longer, unless nothing waits.
    """

    def __init__(self, limits: Limits) -> None:
        self.statistics: WeakKeyDictionary[BatchModel, BatchStatistics] = WeakKeyDictionary()
        self.total = BatchStatistics()
        self._queue = BatchQueue(attrgetter("batch_tokens"))
        self._limits = limits
        self._admission = Admission(limits)
        self._requests: dict[PendingRequest, None] = {}  # not completely answered, in order
        self._last_finished = 0.0
        self._loop = asyncio.get_running_loop()
        # The hand-over between the two threads: the event loop puts texts into the queue, and the
        # engine thread takes them out, both under this lock. Results go the other way by
        # `call_soon_threadsafe` only, so answers and futures are touched by the event loop alone
        # and need no lock. A future that is done by then belongs to a request that was cancelled or
        # has failed, and its answer is dropped.
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run_engine_thread, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that are not completely answered."""
        return len(self._requests)

    async def submit(
        self,
        model: BatchModel,
        rows: Sequence[np.ndarray],
        deadline: float | None = None,
        admitted: bool = False,
    ) -> tuple[list[Any], float]:
        """Return the answers to `rows`, in order, and the seconds they waited for the model.

        deadline: on the clock of `time.perf_counter`. admitted: skip the limits. Raises Overloaded,
        BatchFailed, DeadlineExceeded and BatcherClosed. A cancelled call leaves the queue at once.
        """
        if not rows:
            return [], 0.0
        num_tokens, now = sum(map(len, rows)), time.perf_counter()
        due = now + PATIENCE * num_tokens * self._admission.seconds_per_token(model)
        future = self._loop.create_future()
        request = PendingRequest(future, len(rows), due, num_tokens, deadline)
        if not admitted:
            self._admit(model, request, now)
        with self._changed:
            for position, values in enumerate(rows):
                self._queue.push(QueuedText(model, values, due, request, position))
            self._changed.notify()
        self._requests[request] = None
        try:
            await future
        finally:
            del self._requests[request]
            if len(request.answers) < len(rows):  # cancelled or failed
                with self._changed:
                    self._queue.discard_requests({request})
        answers = [request.answers[position] for position in range(len(rows))]
        return answers, request.started - now

    async def close(self) -> None:
        """Reject new requests, answer those that wait, and stop the engine thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await self._loop.run_in_executor(None, self._thread.join)
        await asyncio.sleep(0)  # run what the thread handed over last

    def _admit(self, model: BatchModel, request: PendingRequest, now: float) -> None:
        """Raise Overloaded for a request that would wait too long; see `Admission`."""
        if self._closed:
            raise BatcherClosed("the server is ending")
        admission, num_tokens = self._admission, request.num_waiting
        with self._changed:
            admission.offer(now, num_tokens)
            if admission.is_overloaded:
                self._shed(model)
            waiting, speed = self._queue.num_tokens, admission.seconds_per_token(model)
        if admission.is_overloaded:
            requests, tokens = self._limits.waiting_under_overload(model.tokens_per_second)
            if len(self._requests) >= requests or (waiting and waiting + num_tokens > tokens):
                raise Overloaded(waiting * speed)
        left = None if request.deadline is None else request.deadline - now
        if left is not None and left <= 0:
            raise DeadlineExceeded("the deadline passed before it came")
        allowed = admission.allowed_wait(model, num_tokens, left)
        if waiting and waiting * speed > allowed:  # else no need to ask what is before it
            ahead = sum(each.num_waiting for each in self._requests if each.due <= request.due)
            if ahead * speed > allowed:
                raise Overloaded(ahead * speed - max(0.0, allowed))
        if len(self._requests) >= self._limits.max_waiting_requests:
            raise Overloaded(waiting * speed)

    def _shed(self, model: BatchModel) -> None:
        """Fail what an overload has left waiting beyond its limits, the last in order first.

        Whoever came before the overload was noticed would else wait through all of it.
        """
        requests, tokens = self._limits.waiting_under_overload(model.tokens_per_second)
        num_requests, num_tokens = len(self._requests), self._queue.num_tokens
        if num_requests <= requests and num_tokens <= tokens:
            return
        unbegun = (each for each in self._requests if not each.started and not each.future.done())
        shed, wait = set(), num_tokens * self._admission.seconds_per_token(model)
        for each in sorted(unbegun, key=attrgetter("due"), reverse=True):
            if num_requests <= requests and num_tokens <= tokens:
                break
            shed.add(each)
            num_requests -= 1
            num_tokens -= each.num_waiting
        self._queue.discard_requests(shed)
        for each in shed:
            each.future.set_exception(Overloaded(wait))

    def _run_engine_thread(self) -> None:
        """Run batch after batch until closed and nothing waits."""
        running: RunningBatch | None = None
        while True:
            texts = self._next_batch(is_idle=running is None)
            if not texts and running is None:
                return
            following = self._begin_batch(texts) if texts else None
            if running is not None:
                self._finish_batch(running)
            running = following
            if running is not None and not running.model.overlaps:
                self._finish_batch(running)
                running = None

    def _begin_batch(self, texts: list[QueuedText]) -> RunningBatch:
        """Begin a batch; what the model raises is raised again by the wait."""
        started, model = time.perf_counter(), cast(BatchModel, texts[0].model)
        for text in texts:
            text.request.started = text.request.started or started
        try:
            wait = model.start_rows([text.values for text in texts])
        except Exception as error:  # fails these requests, not us
            failure = error  # the name in `except` is gone after it

            def wait() -> Sequence[Any]:
                raise failure

        return RunningBatch(model, texts, started, wait)

    def _finish_batch(self, batch: RunningBatch) -> None:
        """Wait for the answers to a batch and deliver them, or fail its requests."""
        texts, error = batch.texts, None
        try:
            answers = batch.wait()
            if len(answers) != len(texts):
                raise RuntimeError(f"{len(answers)} answers to {len(texts)} rows")
        except Exception as raised:  # whatever a model raises fails these requests, not us
            error = raised
        # Of two batches under way, the second counts from the end of the first.
        now, since = time.perf_counter(), max(batch.started, self._last_finished)
        self._last_finished = now
        self._record_batch(batch.model, texts, now - since, failed=error is not None)
        if error is None:
            self._call_in_loop(self._deliver_answers, texts, answers)
            return
        with self._changed:  # no later batch shall compute the rest of failed requests
            self._queue.discard_requests({text.request for text in texts})
        self._call_in_loop(self._fail_requests, texts, error)

    def _next_batch(self, is_idle: bool) -> list[QueuedText]:
        """Take a batch; [] when closed and nothing waits.

        Where nothing waits, an idle engine waits for texts; else [] is returned.
        """
        while True:
            with self._changed:
                while not (batch := self._queue.pop_batch()):
                    self._admission.run_empty()
                    if self._closed or not is_idle:
                        return []
                    self._changed.wait()
                for text in batch:
                    text.request.num_waiting -= len(text.values)
                self._admission.begin(sum(len(text.values) for text in batch))
            now = time.perf_counter()
            late = [text for text in batch if (text.request.deadline or now) < now]
            if not late:
                return batch
            self._call_in_loop(self._fail_requests, late, None)
            if in_time := [text for text in batch if text not in late]:
                return in_time

    def _call_in_loop(self, function: Any, *arguments: Any) -> None:
        """Call `function` in the event loop, if that still runs."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop was closed, and nobody waits for an answer
            self._closed = True

    def _record_batch(
        self, model: BatchModel, batch: list[QueuedText], seconds: float, failed: bool = False
    ) -> None:
        num_tokens = sum(len(text.values) for text in batch)
        for statistics in (self.total, self.statistics.setdefault(model, BatchStatistics())):
            statistics.num_batches += 1
            statistics.num_rows += len(batch)
            statistics.num_tokens += num_tokens
            statistics.busy_seconds += seconds
            statistics.num_failed += failed
        with self._changed:
            self._admission.record_batch(model, num_tokens, seconds)

    def _deliver_answers(self, batch: list[QueuedText], answers: Sequence[Any]) -> None:
        for text, answer in zip(batch, answers, strict=True):
            request: PendingRequest = text.request
            request.answers[text.position] = answer
            if len(request.answers) == request.num_rows and not request.future.done():
                request.future.set_result(None)

    def _fail_requests(self, batch: list[QueuedText], error: BaseException | None) -> None:
        """Fail the requests of texts; error: what the model raised, None for passed deadlines."""
        for text in batch:
            future: asyncio.Future[None] = text.request.future
            if future.done():
                continue
            if error is None:
                future.set_exception(DeadlineExceeded("the deadline passed while it waited"))
                continue
            failure = BatchFailed(f"the model failed: {type(error).__name__}")
            failure.__cause__ = error
            future.set_exception(failure)
