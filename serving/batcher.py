"""Dynamic batching for asyncio: many requests at once become few calls of one engine.

An idle engine starts a request at once; there is no timer. While the engine is busy texts wait, and
the next batch takes the oldest text and then those nearest to it in length, within a budget of
padded tokens. So the oldest never starves, a request larger than the budget is split, and little is
padded. Knows no Ray, no HTTP and no model: `infer` is passed in and runs in one thread of its own.

    batcher = Batcher(engine.infer_rows, token_budget=1024, max_waiting_tokens=32768)
    predictions = await batcher.submit(rows)
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Row = TypeVar("Row", bound=Sized)
Answer = TypeVar("Answer")

# A text joins a batch whose longest is at most twice as long, so that padding at most doubles the
# work of a text. Below so many tokens a text costs the same whatever its length.
MAX_PADDING = 2
CHEAP_TOKENS = 16


class Overloaded(Exception):
    """Too much is waiting; try again after `retry_after_seconds`."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            f"the model is overloaded; try again in {retry_after_seconds} "
            f"second{'s' if retry_after_seconds > 1 else ''}"
        )
        self.retry_after_seconds = retry_after_seconds


class BatchFailed(Exception):
    """The engine raised on the batch this request was in; `__cause__` is what it raised."""


class Closed(Exception):
    """The batcher takes no more requests."""


@dataclass(eq=False)
class _Request(Generic[Answer]):
    """One `submit`: the answers so far, by row, and the promise of all of them."""

    num_rows: int
    promise: asyncio.Future[None]
    answers: dict[int, Answer] = field(default_factory=dict)


@dataclass(eq=False)
class _Waiting(Generic[Row, Answer]):
    """One row of a request that the engine has not seen yet."""

    row: Row
    request: _Request[Answer]
    position: int


class Batcher(Generic[Row, Answer]):
    """Batches the rows of concurrent `submit` calls into calls of `infer`.

    infer: rows to as many answers, in order; runs in a thread, one call at a time.
    token_budget: most tokens of a batch, padding included; a longer row goes alone.
    max_waiting_tokens: what may wait before `submit` raises Overloaded.
    """

    def __init__(
        self,
        infer: Callable[[list[Row]], Sequence[Answer]],
        token_budget: int,
        max_waiting_tokens: int,
    ) -> None:
        self._infer = infer
        self._token_budget = token_budget
        self._max_waiting_tokens = max_waiting_tokens
        self._waiting: list[_Waiting[Row, Answer]] = []
        self._waiting_tokens = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._seconds_per_token = 0.0
        self.last_batch_failed = False

    async def submit(self, rows: Sequence[Row]) -> list[Answer]:
        """The answers to `rows`, in order.

        Raises Overloaded where too much waits, BatchFailed where `infer` raised, and Closed. A
        cancelled call leaves the queue before the engine sees it.
        """
        if self._closed:
            raise Closed("the batcher is closed")
        num_tokens = sum(len(row) for row in rows)
        if self._waiting and self._waiting_tokens + num_tokens > self._max_waiting_tokens:
            raise Overloaded(self._retry_after_seconds())
        if not rows:
            return []
        promise = asyncio.get_running_loop().create_future()
        request: _Request[Answer] = _Request(len(rows), promise)
        self._waiting += [_Waiting(row, request, i) for i, row in enumerate(rows)]
        self._waiting_tokens += num_tokens
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            await promise
        finally:
            if len(request.answers) < len(rows):
                self._forget(request)
        return [request.answers[position] for position in range(len(rows))]

    async def close(self) -> None:
        """Refuse new requests, answer those that wait, and end the engine's thread."""
        self._closed = True
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        """Run batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next_batch()
            started = time.perf_counter()
            rows = [each.row for each in batch]
            call = loop.run_in_executor(self._thread, self._answer, rows)
            await asyncio.wait([call])
            tokens = max(1, sum(len(row) for row in rows))
            self._seconds_per_token = (time.perf_counter() - started) / tokens
            self._settle(batch, call)
        self._worker = None

    def _next_batch(self) -> list[_Waiting[Row, Answer]]:
        """Take the oldest row and its nearest in length out of the queue."""
        oldest, *others = self._waiting
        shortest = longest = max(len(oldest.row), CHEAP_TOKENS)
        batch = [oldest]
        for each in sorted(others, key=lambda each: abs(len(each.row) - len(oldest.row))):
            length = max(len(each.row), CHEAP_TOKENS)
            low, high = min(shortest, length), max(longest, length)
            if high > MAX_PADDING * low or high * (len(batch) + 1) > self._token_budget:
                continue
            shortest, longest = low, high
            batch.append(each)
        taken = set(map(id, batch))
        self._waiting = [each for each in self._waiting if id(each) not in taken]
        self._waiting_tokens -= sum(len(each.row) for each in batch)
        return batch

    def _answer(self, rows: list[Row]) -> Sequence[Answer]:
        answers = self._infer(rows)
        if len(answers) != len(rows):
            raise RuntimeError(f"{len(answers)} answers to {len(rows)} rows")
        return answers

    def _settle(
        self, batch: list[_Waiting[Row, Answer]], call: asyncio.Future[Sequence[Answer]]
    ) -> None:
        """Hand the answers of a batch, or its failure, to the requests that were in it."""
        error = call.exception()
        self.last_batch_failed = error is not None
        if error is not None:
            for request in {id(each.request): each.request for each in batch}.values():
                self._fail(request, error)
            return
        for each, answer in zip(batch, call.result(), strict=True):
            request = each.request
            request.answers[each.position] = answer
            if len(request.answers) == request.num_rows and not request.promise.done():
                request.promise.set_result(None)

    def _fail(self, request: _Request[Answer], error: BaseException) -> None:
        self._forget(request)
        if not request.promise.done():
            failure = BatchFailed(f"the model failed: {type(error).__name__}")
            failure.__cause__ = error
            request.promise.set_exception(failure)

    def _forget(self, request: _Request[Answer]) -> None:
        """Take what still waits of a request out of the queue."""
        self._waiting = [each for each in self._waiting if each.request is not request]
        self._waiting_tokens = sum(len(each.row) for each in self._waiting)

    def _retry_after_seconds(self) -> int:
        """How long what waits will take, by the speed of the last batch; at least 1."""
        return max(1, math.ceil(self._waiting_tokens * self._seconds_per_token))
