"""Global batches: the same samples, the same gradient, however they are cut."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.microbatch import (
    CutCost,
    count_tokens,
    cut_batch,
    epoch_order,
    global_batch_rows,
    steps_per_epoch,
)

LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=80)
RANKS = st.integers(1, 9)
BUDGETS = st.sampled_from([1, 64, 512, 2048, 10**6])


@given(lengths=LENGTHS, num_ranks=RANKS, budget=BUDGETS, overhead=st.sampled_from([0.0, 16.0, 1e4]))
def test_every_sample_appears_exactly_once(
    lengths: list[int], num_ranks: int, budget: int, overhead: float
) -> None:
    rows = np.arange(100, 100 + len(lengths))
    ranks = cut_batch(rows, np.array(lengths), num_ranks, budget, CutCost(overhead, hidden_size=32))
    assert len(ranks) == num_ranks
    assert all(ranks), "every rank takes part in the step"
    weighed = [m for share in ranks for m in share if m.weight]
    assert sorted(np.concatenate([m.rows for m in weighed])) == list(rows)
    assert all(m.weight == 1 / len(lengths) for m in weighed)
    by_row = dict(zip(rows, lengths, strict=True))
    for micro_batch in weighed:
        padded = max(by_row[row] for row in micro_batch.rows) * len(micro_batch.rows)
        assert padded <= budget or len(micro_batch.rows) == 1


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
    ranks = cut_batch(rows, np.array(lengths), num_ranks, budget, CutCost())
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
    cost = CutCost(hidden_size=384)
    ranks = cut_batch(np.arange(256), lengths, num_ranks, 2048, cost)
    loads = [sum(cost.sample_costs(lengths[m.rows]).sum() for m in share) for share in ranks]
    assert max(loads) - np.mean(loads) <= cost.sample_costs(np.array([512]))[0]


def test_the_cut_pads_as_little_as_any() -> None:
    """Against every contiguous cut of ten samples within the budget."""
    lengths = np.array([512, 500, 490, 300, 290, 120, 100, 60, 50, 9])
    budget, overhead = 1100, 30.0

    def price(edges: tuple[int, ...]) -> float:
        spans = list(itertools.pairwise(edges))
        if any((b - a) * lengths[a] > budget and b - a > 1 for a, b in spans):
            return float("inf")
        return float(sum((b - a) * lengths[a] + overhead for a, b in spans))

    cheapest = min(
        price((0, *(i for i in range(1, 10) if mask >> i & 1), 10)) for mask in range(0, 1 << 10, 2)
    )
    (share,) = cut_batch(np.arange(10), lengths, 1, budget, CutCost(overhead))
    edges = tuple(np.cumsum([0, *(len(m.rows) for m in share)]))
    assert price(edges) == cheapest


def test_sorting_leaves_little_padding() -> None:
    lengths = np.random.default_rng(1).integers(20, 512, size=64)
    (share,) = cut_batch(np.arange(64), lengths, 1, 2048, CutCost(overhead=16))
    real, computed = count_tokens(share, lengths)
    assert real == lengths.sum()
    assert 1 - real / computed < 0.05
