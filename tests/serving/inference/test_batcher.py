"""The batcher, with a tiny engine passed in: order, coalescing, fairness, failure, the end."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest

from serving.inference.batcher import (
    Batcher,
    BatcherClosed,
    BatchFailed,
    DeadlineExceeded,
    Overloaded,
)
from serving.interface import DEFAULT_WAITING_REQUESTS, DEFAULT_WAITING_TOKENS, Limits

Row = str
Scenario = Callable[["Engine", Batcher], Awaitable[None]]


class Engine:
    """Answers a row with itself in capitals; keeps the batches it saw; waits while held.

    Rows are strings: a batcher asks no more of them than a length.
    """

    overlaps = False
    tokens_per_second = 0.0

    def __init__(self, batch_tokens: int = 64) -> None:
        self.batch_tokens = batch_tokens
        self.batches: list[list[Row]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()

    def start_rows(self, rows: Sequence[Row]) -> Callable[[], Sequence[str]]:
        return lambda: self.infer_rows(rows)

    def infer_rows(self, rows: Sequence[Row]) -> Sequence[str]:
        self.batches.append(list(rows))
        self.entered.set()
        assert self.free.wait(10)
        if any("poison" in row for row in rows):
            raise ArithmeticError("poisoned")
        if any("short" in row for row in rows):
            return []
        return [row.upper() for row in rows]

    async def hold(self, batcher: Batcher) -> "asyncio.Task[list[str]]":
        """Make the engine busy with one row until `free` is set."""
        self.free.clear()
        self.entered.clear()
        task = asyncio.create_task(answers(batcher, self, "held"))
        await asyncio.to_thread(self.entered.wait, 10)
        return task


async def answers(
    batcher: Batcher, engine: Engine, *rows: Row, deadline: float | None = None
) -> list[str]:
    """The answers to one request."""
    found, waited = await batcher.submit(engine, rows, deadline)  # type: ignore[arg-type]
    assert waited >= 0
    return found


def play(
    scenario: Scenario,
    token_budget: int = 64,
    engine: Engine | None = None,
    **limits: float,
) -> Engine:
    """Run a scenario against a fresh batcher; the engine with the batches it saw."""
    engine = engine or Engine(token_budget)

    async def run() -> None:
        batcher = Batcher(Limits(**limits))
        await scenario(engine, batcher)
        await batcher.close()

    asyncio.run(asyncio.wait_for(run(), 20))
    return engine


async def queued(batcher: Batcher, engine: Engine, *rows: Row) -> "list[asyncio.Task[list[str]]]":
    """Requests of one row each, submitted in order and waiting."""
    tasks = [asyncio.create_task(answers(batcher, engine, row)) for row in rows]
    await asyncio.sleep(0)
    return tasks


def test_answers_come_in_the_order_of_the_rows() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        rows = ["a" * 40, "b", "c" * 20, "d" * 3]
        assert await answers(batcher, engine, *rows) == [row.upper() for row in rows]

    play(scenario)


def test_no_rows_need_no_engine() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        assert await answers(batcher, engine) == []

    assert play(scenario).batches == []


def test_what_waits_while_the_engine_is_busy_goes_as_one_batch() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        held = await engine.hold(batcher)
        tasks = await queued(batcher, engine, "one", "two", "six")
        engine.free.set()
        assert await asyncio.gather(*tasks) == [["ONE"], ["TWO"], ["SIX"]]
        assert await held == ["HELD"]

    assert play(scenario).batches == [["held"], ["one", "two", "six"]]


def test_an_idle_engine_starts_at_once_and_alone() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        assert await answers(batcher, engine, "one") == ["ONE"]
        assert await answers(batcher, engine, "two") == ["TWO"]

    assert play(scenario).batches == [["one"], ["two"]]


def test_a_request_larger_than_the_budget_is_split() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        rows = [letter * 30 for letter in "abcde"]
        assert await answers(batcher, engine, *rows) == [row.upper() for row in rows]

    assert [len(batch) for batch in play(scenario).batches] == [2, 2, 1]


def test_a_row_larger_than_the_budget_goes_alone() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        assert await answers(batcher, engine, "a" * 500, "b" * 400) == ["A" * 500, "B" * 400]

    assert [len(batch) for batch in play(scenario).batches] == [1, 1]


def test_what_is_late_is_dropped_before_it_costs_anything() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        soon = time.perf_counter() + 0.01
        late = asyncio.create_task(answers(batcher, engine, "late", deadline=soon))
        (other,) = await queued(batcher, engine, "other")
        await asyncio.sleep(0.02)
        engine.free.set()
        with pytest.raises(DeadlineExceeded, match="deadline passed"):
            await late
        assert await other == ["OTHER"]

    assert play(scenario).batches == [["held"], ["other"]]


def test_a_cancelled_request_costs_nothing() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        one, two, three = await queued(batcher, engine, "one", "two", "three")
        two.cancel()
        await asyncio.sleep(0)
        engine.free.set()
        assert await asyncio.gather(one, three) == [["ONE"], ["THREE"]]
        with pytest.raises(asyncio.CancelledError):
            await two

    assert play(scenario).batches == [["held"], ["one", "three"]]


def test_cancelling_what_the_engine_works_on_harms_nobody_else() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        held = await engine.hold(batcher)
        (other,) = await queued(batcher, engine, "other")
        held.cancel()
        engine.free.set()
        assert await other == ["OTHER"]

    play(scenario)


def test_what_would_wait_too_long_is_refused_and_room_returns() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        one, *others = await queued(batcher, engine, *["a" * 5] * 7)  # a quarter of a second each
        with pytest.raises(Overloaded, match=r"again in 0\.25 seconds$") as refused:
            await answers(batcher, engine, "c" * 5)
        assert refused.value.retry_after_seconds == pytest.approx(0.25)
        one.cancel()
        await asyncio.sleep(0)
        (last,) = await queued(batcher, engine, "c" * 5)
        engine.free.set()
        assert await asyncio.gather(*others, last) == [["A" * 5]] * 6 + [["C" * 5]]

    play(scenario, engine=slow_engine(20), max_wait_seconds=1.5)


def slow_engine(tokens_per_second: float) -> Engine:
    engine = Engine()
    engine.tokens_per_second = tokens_per_second
    return engine


def test_a_small_request_does_not_wait_for_a_large_one_that_is_due_later() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        (large,) = await queued(batcher, engine, "a" * 60)
        with pytest.raises(Overloaded):  # 3 s are before this one, which is as large
            await answers(batcher, engine, "b" * 60, deadline=time.perf_counter() + 5)
        (small,) = await queued(batcher, engine, "c")
        engine.free.set()
        assert await asyncio.gather(small, large) == [["C"], ["A" * 60]]

    engine = play(scenario, engine=slow_engine(20), max_wait_seconds=1.5)
    assert engine.batches == [["held"], ["c", "a" * 60]]


def test_who_asks_for_much_may_wait_for_long() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        one, two = await queued(batcher, engine, "a" * 60, "b" * 60)
        engine.free.set()
        assert await asyncio.gather(one, two) == [["A" * 60], ["B" * 60]]

    play(scenario, engine=slow_engine(20), max_wait_seconds=1.5)


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        (one,) = await queued(batcher, engine, "a" * 20)
        now = time.perf_counter()
        with pytest.raises(Overloaded):
            await answers(batcher, engine, "b" * 20, deadline=now + 1.9)
        with pytest.raises(DeadlineExceeded):
            await answers(batcher, engine, "b" * 20, deadline=now - 1)
        two = asyncio.create_task(answers(batcher, engine, "b" * 20, deadline=now + 30))
        engine.free.set()
        assert await asyncio.gather(one, two) == [["A" * 20], ["B" * 20]]

    play(scenario, engine=slow_engine(20), max_wait_seconds=0.1)


def test_eighty_at_once_are_all_answered() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        rows = [f"row {number}" for number in range(80)]
        waiting = await queued(batcher, engine, *rows)
        engine.free.set()
        assert await asyncio.gather(*waiting) == [[row.upper()] for row in rows]

    play(scenario)


def test_under_overload_the_queue_is_cut_to_a_short_one() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        begun, *waiting = await queued(batcher, engine, *["row"] * 40)
        batcher._admission.is_overloaded = True
        with pytest.raises(Overloaded):
            await answers(batcher, engine, "new")
        found = await asyncio.wait_for(
            asyncio.gather(*waiting[DEFAULT_WAITING_REQUESTS - 2 :], return_exceptions=True), 5
        )
        assert len(found) == 17 and all(isinstance(each, Overloaded) for each in found)
        assert batcher.num_waiting == DEFAULT_WAITING_REQUESTS
        engine.free.set()
        kept = waiting[: DEFAULT_WAITING_REQUESTS - 2]
        assert await asyncio.gather(begun, *kept) == [["ROW"]] * (DEFAULT_WAITING_REQUESTS - 1)
        assert batcher._queue.num_tokens == 0

    play(scenario)


def test_as_many_requests_as_may_wait() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        held = await engine.hold(batcher)
        (waiting,) = await queued(batcher, engine, "one")
        assert batcher.num_waiting == 2
        with pytest.raises(Overloaded):
            await answers(batcher, engine, "two")
        engine.free.set()
        assert await asyncio.gather(held, waiting) == [["HELD"], ["ONE"]]
        assert await answers(batcher, engine, "two") == ["TWO"]

    play(scenario, max_waiting_requests=2)


def test_a_request_of_any_size_is_taken_when_nothing_waits() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        assert await answers(batcher, engine, "a" * 200) == ["A" * 200]

    play(scenario, engine=slow_engine(20), max_wait_seconds=0.0)


def test_an_error_fails_only_its_own_batch() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        await engine.hold(batcher)
        poisoned, beside, apart = await queued(batcher, engine, "poison", "beside", "a" * 60)
        engine.free.set()
        for task in (poisoned, beside):
            with pytest.raises(BatchFailed, match="ArithmeticError") as failure:
                await task
            assert isinstance(failure.value.__cause__, ArithmeticError)
        assert await apart == ["A" * 60]
        assert await answers(batcher, engine, "after") == ["AFTER"]
        assert batcher.statistics[engine].num_failed == 1

    play(scenario)


def test_the_rest_of_a_failed_request_is_not_computed() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        with pytest.raises(BatchFailed):
            await answers(batcher, engine, "poison" * 10, "a" * 200)
        assert batcher.statistics[engine].num_failed == 1

    assert len(play(scenario).batches) == 1


def test_an_engine_that_answers_too_little_fails_its_batch() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        with pytest.raises(BatchFailed, match="RuntimeError"):
            await answers(batcher, engine, "short")
        assert await answers(batcher, engine, "fine") == ["FINE"]

    play(scenario)


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        held = await engine.hold(batcher)
        (waiting,) = await queued(batcher, engine, "waiting")
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(BatcherClosed):
            await answers(batcher, engine, "late")
        engine.free.set()
        await closing
        assert (held.done(), waiting.done()) == (True, True)
        assert await waiting == ["WAITING"]

    play(scenario)


def test_many_at_once_all_get_their_own_answer() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        requests = [[f"{i}-{j}" * (1 + (i * j) % 9) for j in range(i % 4 + 1)] for i in range(200)]
        found = await asyncio.gather(*(answers(batcher, engine, *rows) for rows in requests))
        assert found == [[row.upper() for row in rows] for rows in requests]

    engine = play(scenario)
    assert len(engine.batches) < sum(i % 4 + 1 for i in range(200))


@pytest.mark.parametrize(
    ("tokens_per_second", "requests", "tokens"),
    [
        (0.0, DEFAULT_WAITING_REQUESTS, DEFAULT_WAITING_TOKENS),
        (1e3, DEFAULT_WAITING_REQUESTS, DEFAULT_WAITING_TOKENS),
        (1e6, 3125, 100_000),
    ],
)
def test_what_may_wait_under_overload_follows_from_the_measured_speed(
    tokens_per_second: float, requests: int, tokens: int
) -> None:
    assert Limits().waiting_under_overload(tokens_per_second) == (requests, tokens)
    assert Limits(max_waiting_requests=9).waiting_under_overload(tokens_per_second)[0] == 9


class Ahead(Engine):
    """Computes beside the host: `start_rows` returns at once; `events` is what happened in order.

    Rows wait, once begun, until `free`.
    """

    overlaps = True

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.under_way = self.most_under_way = 0

    def start_rows(self, rows: Sequence[Row]) -> Callable[[], Sequence[str]]:
        if any("unbegun" in row for row in rows):
            raise ArithmeticError("not begun")
        self.events.append(f"begin {rows[0]}")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)

        def wait() -> Sequence[str]:
            try:
                return self.infer_rows(rows)
            finally:
                self.under_way -= 1
                self.events.append(f"end {rows[0]}")

        return wait


def test_beside_the_host_the_next_batch_begins_before_the_first_is_waited_for() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        held = await engine.hold(batcher)
        tasks = await queued(batcher, engine, *(letter * 50 for letter in "abc"))
        engine.free.set()
        assert await held == ["HELD"]
        assert await asyncio.gather(*tasks) == [[letter * 50] for letter in "ABC"]
        assert await answers(batcher, engine, "later") == ["LATER"]

    engine = Ahead()
    play(scenario, engine=engine)
    a, b, c = (letter * 50 for letter in "abc")
    assert engine.events == [
        "begin held", "end held", f"begin {a}", f"begin {b}", f"end {a}", f"begin {c}", f"end {b}",
        f"end {c}", "begin later", "end later",
    ]  # fmt: skip
    assert engine.most_under_way == 2


def test_of_two_batches_under_way_one_may_fail_and_time_is_counted_once() -> None:
    async def scenario(engine: Engine, batcher: Batcher) -> None:
        started = time.perf_counter()
        held = await engine.hold(batcher)
        tasks = await queued(
            batcher, engine, "poison" + "a" * 50, "unbegun" + "b" * 50, "c" * 50, "d" * 50
        )
        await asyncio.sleep(0.05)
        engine.free.set()
        found = await asyncio.gather(held, *tasks, return_exceptions=True)
        assert [type(each) for each in found] == [list, BatchFailed, BatchFailed, list, list]
        assert found[3] == ["C" * 50]
        assert batcher.statistics[engine].num_failed == 2
        assert 0.05 <= batcher.total.busy_seconds <= time.perf_counter() - started

    play(scenario, engine=Ahead())
