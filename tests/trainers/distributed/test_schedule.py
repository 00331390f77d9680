"""The pipeline's schedule: everything once, in an order that can run, holding little."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.distributed.schedule import PipelineAction, forward_only, one_forward_one_backward


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 14))
def test_everything_is_computed_once_after_what_it_needs(
    num_ranks: int, stages_per_rank: int, num_micro_batches: int
) -> None:
    num_micro_batches *= num_ranks if stages_per_rank > 1 else 1
    orders = one_forward_one_backward(num_ranks, stages_per_rank, num_micro_batches)
    num_stages = num_ranks * stages_per_rank
    for rank, order in enumerate(orders):
        assert {action.stage % num_ranks for action in order} <= {rank}
    everything = [action for order in orders for action in order]
    wanted = {
        PipelineAction(forward, stage, micro_batch)
        for forward in (True, False)
        for stage in range(num_stages)
        for micro_batch in range(num_micro_batches)
    }
    assert len(everything) == len(wanted)
    assert set(everything) == wanted
    assert runs(orders, num_stages)


def runs(orders: tuple[tuple[PipelineAction, ...], ...], num_stages: int) -> bool:
    """Whether ranks that each keep their own order, and wait for what they need, all end."""
    left, done = [list(order) for order in orders], set()
    while any(left):
        moved = False
        for order in left:
            while order and needs(order[0], num_stages) <= done:
                done.add(order.pop(0))
                moved = True
        if not moved:
            return False
    return True


def needs(action: PipelineAction, num_stages: int) -> set[PipelineAction]:
    if action.forward:
        before = PipelineAction(True, action.stage - 1, action.micro_batch)
        return {before} if action.stage else set()
    own = PipelineAction(True, action.stage, action.micro_batch)
    after = PipelineAction(False, action.stage + 1, action.micro_batch)
    return {own} | ({after} if action.stage + 1 < num_stages else set())


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 7])
def test_a_rank_holds_no_more_micro_batches_than_ranks_behind_it(num_ranks: int) -> None:
    """1F1B: min(m, p - i) micro-batches in flight on rank i, as the memory model counts them."""
    for num_micro_batches in (1, 3, 20):
        for rank, order in enumerate(one_forward_one_backward(num_ranks, 1, num_micro_batches)):
            held = most = 0
            for action in order:
                held += 1 if action.forward else -1
                most = max(most, held)
            assert most == min(num_micro_batches, num_ranks - rank)


def test_one_rank_is_the_plain_loop() -> None:
    (order,) = one_forward_one_backward(1, 1, 3)
    assert [(a.forward, a.micro_batch) for a in order] == [
        (True, 0),
        (False, 0),
        (True, 1),
        (False, 1),
        (True, 2),
        (False, 2),
    ]


def test_interleaving_shortens_the_bubble() -> None:
    """Idle time falls with stages a rank: (p-1)/(v m), Narayanan et al. 2021, section 2.2."""
    num_ranks, num_micro_batches = 4, 8
    idle = [bubble(num_ranks, v, num_micro_batches) for v in (1, 2)]
    assert idle[0] == pytest.approx((num_ranks - 1) / num_micro_batches)
    assert idle[1] == pytest.approx((num_ranks - 1) / (2 * num_micro_batches))


def bubble(num_ranks: int, stages_per_rank: int, num_micro_batches: int) -> float:
    """Idle over busy time, when forward takes 1 and backward 2 by the stage."""
    orders = one_forward_one_backward(num_ranks, stages_per_rank, num_micro_batches)
    num_stages, ended, clock = num_ranks * stages_per_rank, {}, [0] * num_ranks
    left = [list(order) for order in orders]
    while any(left):
        for rank, order in enumerate(left):
            while order and needs(order[0], num_stages) <= ended.keys():
                action = order.pop(0)
                start = max([clock[rank], *(ended[n] for n in needs(action, num_stages))])
                clock[rank] = ended[action] = start + (1 if action.forward else 2)
    busy = 3 * stages_per_rank * num_micro_batches
    return (max(clock) - busy) / busy


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9))
def test_an_evaluation_goes_forward_only(p: int, v: int, m: int) -> None:
    orders = forward_only(p, v, m)
    assert runs(orders, p * v)
    assert sum(map(len, orders)) == p * v * m
