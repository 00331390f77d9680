"""Global batches: the same samples, the same gradient, however they are cut."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.data.microbatch import (
    CutConstraints,
    count_tokens,
    cut_batch,
    deal,
    epoch_order,
    global_batch_rows,
    sample_costs,
    steps_per_epoch,
)

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=80)
RANKS = st.integers(1, 9)
BUDGETS = st.sampled_from([1, 64, 512, 2048, 10**6])


CONSTRAINTS = st.builds(CutConstraints, st.integers(1, 4), st.sampled_from([1, 2]), st.booleans())


@given(lengths=LENGTHS, num_ranks=RANKS, budget=BUDGETS, constraints=CONSTRAINTS)
def test_every_sample_appears_exactly_once(
    lengths: list[int], num_ranks: int, budget: int, constraints: CutConstraints
) -> None:
    rows = np.arange(100, 100 + len(lengths))
    ranks = cut_batch(rows, np.array(lengths), num_ranks, budget, 32, constraints)
    assert len(ranks) == num_ranks
    assert all(ranks), "every rank takes part in the step"
    weighed = [m for share in ranks for m in share if m.weight]
    assert sorted(np.concatenate([m.rows for m in weighed])) == list(rows)
    assert all(m.weight == 1 / len(lengths) for m in weighed)
    by_row = dict(zip(rows, lengths, strict=True))
    for micro_batch in weighed:
        tokens = sum(by_row[row] for row in micro_batch.rows)
        assert tokens <= max(budget, *lengths, 0)
    counts = [len(share) for share in ranks]
    assert all(count % constraints.multiple == 0 for count in counts)
    assert len(set(counts)) == 1 or not constraints.equal_counts
    for share in ranks:
        tokens = [sum(by_row[row] for row in m.rows) for m in share if m.weight]
        assert tokens == sorted(tokens), "the longest backward hides the exchange of gradients"


@given(lengths=LENGTHS, num_ranks=RANKS, budget=BUDGETS)
def test_the_gradient_is_that_of_the_whole_batch(
    lengths: list[int], num_ranks: int, budget: int
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    inputs = torch.randn(len(lengths), 3, dtype=torch.float64, generator=generator)
    targets = torch.randn(len(lengths), dtype=torch.float64, generator=generator)

    def gradient(weights: torch.Tensor, rows: np.ndarray, weight: float) -> torch.Tensor:
        weights = weights.clone().requires_grad_()
        losses = (inputs[rows] @ weights - targets[rows]).tanh().square()
        (losses.sum() * weight).backward()
        assert weights.grad is not None
        return weights.grad

    at = torch.ones(3, dtype=torch.float64)
    rows = np.arange(len(lengths))
    whole = gradient(at, rows, 1 / len(lengths))
    ranks = cut_batch(rows, np.array(lengths), num_ranks, budget)
    parts = sum(gradient(at, m.rows, m.weight) for share in ranks for m in share)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 2**31 - 1), st.integers(0, 50), st.integers(1, 500), st.integers(1, 64))
def test_an_epoch_is_its_global_batches(seed: int, epoch: int, n: int, size: int) -> None:
    ordered = epoch_order(seed, epoch, n)
    steps = steps_per_epoch(n, size)
    batches = [global_batch_rows(ordered, step, size) for step in range(steps)]
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches[-1]) > 0
    assert np.array_equal(ordered, epoch_order(seed, epoch, n))


def test_seed_and_epoch_change_the_order() -> None:
    orders = [tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_ranks_are_balanced_to_a_sample(num_ranks: int) -> None:
    lengths = np.random.default_rng(0).integers(10, 512, size=256)
    ranks = cut_batch(np.arange(256), lengths, num_ranks, 2048, 384)
    costs = sample_costs(lengths, 384)
    loads = [sum(costs[m.rows].sum() for m in share) for share in ranks]
    assert max(loads) / np.mean(loads) < 1.01


@pytest.mark.parametrize("budget", [600, 1100, 2048, 10**6])
def test_a_cut_has_few_and_even_micro_batches(budget: int) -> None:
    lengths = np.random.default_rng(1).integers(20, 512, size=64)
    (share,) = cut_batch(np.arange(64), lengths, 1, budget)
    tokens = [count_tokens([m], lengths) for m in share]
    assert sum(tokens) == lengths.sum()
    assert len(share) <= 1.15 * np.ceil(lengths.sum() / budget)
    assert max(tokens) / np.mean(tokens) < 1.1


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 3))
def test_a_deal_exceeds_the_best_by_a_third_at_most(costs: list[int], count: int) -> None:
    """Against every way to deal eight samples."""
    ordered = np.array(sorted(costs, reverse=True))
    parts = deal(ordered, count)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(costs)))
    best = min(
        max(sum(c for c, p in zip(ordered, way, strict=True) if p == part) for part in range(count))
        for way in itertools.product(range(count), repeat=len(costs))
    )
    assert max(int(ordered[part].sum()) for part in parts) <= best * (4 / 3) + 1e-9


def test_one_long_sample_does_not_shrink_the_others() -> None:
    lengths = np.array([900, *[10] * 60])
    (share,) = cut_batch(np.arange(61), lengths, 1, 500)
    assert [len(m.rows) for m in share] == [60, 1]
