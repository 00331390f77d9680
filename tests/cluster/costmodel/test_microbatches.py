"""Cuts that are foretold, against cuts that are made."""

import numpy as np
import pytest

from cluster.costmodel.microbatches import (
    Lengths,
    default_token_budget,
    micro_batch_overhead,
    predict_cut,
)
from trainers.data.microbatch import CutCost, count_tokens, cut_batch
from trainers.distributed.device import DEVICES


@pytest.mark.parametrize("kind", DEVICES)
def test_budgets_are_those_of_the_devices(kind: str) -> None:
    row = DEVICES[kind]
    assert micro_batch_overhead(kind) == row.overhead_tokens
    assert default_token_budget(kind) == row.token_budget


@pytest.mark.parametrize("samples", [32, 128, 512])
@pytest.mark.parametrize(("low", "high"), [(1, 60), (20, 60), (1, 400)])
def test_a_cut_is_foretold(samples: int, low: int, high: int) -> None:
    draw = np.random.default_rng(0)
    many = draw.integers(low, high, 100_000)
    lengths = Lengths.from_samples(many)
    counts, padded = [], []
    for _ in range(20):
        some = draw.choice(many, samples)
        (made,) = cut_batch(np.arange(samples), some, 1, 10**6, CutCost(100.0))
        real, computed = count_tokens(made, some)
        counts.append(len(made))
        padded.append(computed / real)
    found = predict_cut(samples, lengths, 10**6 / lengths.mean, 100.0)
    assert found.count == pytest.approx(np.mean(counts), rel=0.12, abs=0.6)
    assert found.padded == pytest.approx(np.mean(padded), rel=0.06)


def test_even_lengths_are_spread_as_the_formula_says() -> None:
    draw = np.random.default_rng(0)
    whole, half = (
        Lengths.from_samples(draw.integers(1, 200, 10**5)),
        Lengths.from_samples(draw.integers(50, 150, 10**5)),
    )
    assert whole.spread == pytest.approx(1.0, rel=0.03)
    assert half.spread == pytest.approx(0.5, rel=0.05)
    assert Lengths.assume_even(100, 150).spread == 0.5
    assert Lengths.assume_even(20, 512).spread == 1.0
    squares = draw.integers(50, 150, 10**5).astype(float)
    assert half.attended == pytest.approx((squares**2).mean() / squares.mean(), rel=0.01)


def test_samples_alike_are_cut_by_the_budget_alone() -> None:
    assert Lengths.from_samples(np.full(10, 7)) == Lengths(7.0) == Lengths.assume_even(7, 7)
    made = predict_cut(33, Lengths(128.0), 16, 100.0)
    assert (made.count, made.padded) == (3, 1.0)


def test_a_budget_makes_more_pieces_than_are_cheapest() -> None:
    lengths = Lengths(100.0, 1.0)
    assert predict_cut(64, lengths, 4, 10**9).count == 16
    assert predict_cut(1, lengths, 4, 1.0).padded == 1.0
