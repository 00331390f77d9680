"""The order of waiting rows: nothing is lost, budgets hold, owners do not mix, nothing starves."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.inference.queue import BatchQueue, QueuedText

ROWS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 700), st.floats(0, 100)), max_size=60
)


def row(owner: str, length: int, due: float, ticket: object = None) -> QueuedText:
    return QueuedText(owner, "x" * length, due, ticket)  # type: ignore[arg-type]


def drained(queue: BatchQueue) -> list[list[QueuedText]]:
    """Every batch, until nothing waits."""
    batches = []
    while batch := queue.pop_batch():
        batches.append(batch)
    assert (queue.num_rows, queue.num_tokens) == (0, 0)
    return batches


@given(rows=ROWS, budget=st.integers(1, 2000))
def test_every_row_is_taken_once_and_within_the_budget(
    rows: list[tuple[str, int, float]], budget: int
) -> None:
    queue = BatchQueue(lambda _: budget)
    added = [row(*each) for each in rows]
    for each in added:
        queue.push(each)
    assert queue.num_tokens == sum(length for _, length, _ in rows)
    batches = drained(queue)
    assert Counter(map(id, added)) == Counter(id(each) for batch in batches for each in batch)
    for batch in batches:
        lengths = [len(each.values) for each in batch]
        assert len({each.model for each in batch}) == 1
        assert len(batch) == 1 or sum(lengths) <= budget


@given(rows=ROWS, budget=st.integers(1, 2000))
def test_a_batch_is_headed_by_what_is_due_first(
    rows: list[tuple[str, int, float]], budget: int
) -> None:
    queue = BatchQueue(lambda _: budget)
    waiting = [row(*each) for each in rows]
    for each in waiting:
        queue.push(each)
    while batch := queue.pop_batch():
        assert batch[0].due == min(each.due for each in waiting)
        waiting = [each for each in waiting if not any(each is taken for taken in batch)]


@given(rows=st.lists(st.tuples(st.integers(1, 99), st.integers(0, 3)), max_size=40))
def test_what_is_discarded_never_comes(rows: list[tuple[int, int]]) -> None:
    queue, tickets = BatchQueue(lambda _: 200), [object() for _ in range(4)]
    for length, number in rows:
        queue.push(row("a", length, 0.0, tickets[number]))
    queue.discard_requests({tickets[0]})
    kept = [length for length, number in rows if number != 0]
    assert (queue.num_rows, queue.num_tokens) == (len(kept), sum(kept))
    taken = [each for batch in drained(queue) for each in batch]
    assert sorted(len(each.values) for each in taken) == sorted(kept)


def test_texts_of_any_length_fill_the_budget_together() -> None:
    queue = BatchQueue(lambda _: 64)
    for number, length in enumerate((30, 17, 15, 60, 3, 31)):
        queue.push(row("a", length, float(number)))
    batches = [[len(each.values) for each in batch] for batch in drained(queue)]
    assert batches == [[30, 17, 15], [60, 3], [31]]


def test_what_is_due_later_waits_though_it_came_first() -> None:
    queue = BatchQueue(lambda _: 64)
    queue.push(row("a", 64, due=9.0))
    for _ in range(5):
        queue.push(row("a", 20, due=1.0))
    assert [[len(each.values) for each in batch] for batch in drained(queue)] == [
        [20, 20, 20],
        [20, 20],
        [64],
    ]
