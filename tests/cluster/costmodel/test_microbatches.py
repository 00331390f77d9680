"""Cuts that are foretold, against cuts that are made."""

import numpy as np
import pytest

from cluster.costmodel.microbatches import Lengths, count_micro_batches, default_token_budget
from trainers.data.microbatch import cut_batch
from trainers.distributed.device import DEVICES


@pytest.mark.parametrize("kind", DEVICES)
def test_budgets_are_those_of_the_devices(kind: str) -> None:
    assert default_token_budget(kind) == DEVICES[kind].token_budget


@pytest.mark.parametrize("samples", [32, 128, 512])
@pytest.mark.parametrize(("low", "high"), [(1, 60), (20, 60), (1, 400)])
@pytest.mark.parametrize("budget", [512, 2048, 10**6])
def test_a_cut_is_foretold(samples: int, low: int, high: int, budget: int) -> None:
    draw = np.random.default_rng(0)
    many = draw.integers(low, high, 100_000)
    lengths = Lengths.from_samples(many)
    counts = [
        len(cut_batch(np.arange(samples), draw.choice(many, samples), 1, budget)[0])
        for _ in range(20)
    ]
    found = count_micro_batches(samples, budget / lengths.mean)
    assert found == pytest.approx(np.mean(counts), rel=0.1, abs=0.6)


def test_the_spread_is_that_of_uniform_lengths() -> None:
    draw = np.random.default_rng(0)
    whole, half = (
        Lengths.from_samples(draw.integers(1, 200, 10**5)),
        Lengths.from_samples(draw.integers(50, 150, 10**5)),
    )
    assert whole.spread == pytest.approx(1.0, rel=0.03)
    assert half.spread == pytest.approx(0.5, rel=0.05)
    assert Lengths.assume_even(100, 150).spread == 0.5
    assert Lengths.assume_even(20, 512).spread == 1.0
    skewed = draw.lognormal(4, 0.8, 10**5)
    attended = (skewed**2).mean() / skewed.mean()
    assert Lengths.from_samples(skewed).attended == pytest.approx(attended)


def test_samples_alike_are_cut_by_the_budget_alone() -> None:
    assert Lengths.from_samples(np.full(10, 7)) == Lengths(7.0) == Lengths.assume_even(7, 7)
    assert count_micro_batches(33, 16) == 3 and count_micro_batches(1, 4) == 1
