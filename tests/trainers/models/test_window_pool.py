"""Pooling: one row a text of the rows of its windows, and a gradient for each that counts."""

import numpy as np
import pytest
import torch

from trainers.config.windows import Pool
from trainers.models.window_pool import WindowPool

COUNTS = np.array([1, 3, 2])
OUTPUTS = torch.tensor([[1.0, -1.0], [2.0, 0.0], [-4.0, 3.0], [5.0, 0.0], [0.5, 0.5], [1.5, -2.5]])
EXPECTED: dict[Pool, list[list[float]]] = {
    "mean": [[1, -1], [1, 1], [1, -1]],
    "max": [[1, -1], [5, 3], [1.5, 0.5]],
}


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_a_text_has_one_row_whatever_its_windows(kind: Pool) -> None:
    pooled = WindowPool.from_counts(COUNTS, kind)(OUTPUTS)
    assert pooled.tolist() == EXPECTED[kind]
    half = WindowPool.from_counts(COUNTS, kind)(OUTPUTS.bfloat16())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_windows_may_be_computed_in_any_order_and_few_shapes(kind: Pool) -> None:
    order = np.array([3, 0, 5, 2, 4, 1])
    shuffled = torch.cat([OUTPUTS[torch.from_numpy(order)], torch.full((2, 2), 99.0)])
    pool = WindowPool.from_counts(COUNTS, kind, order=order, shape=(4, 4))
    assert pool.places.shape == (4, 4)
    assert pool(shuffled).tolist() == [*EXPECTED[kind], EXPECTED[kind][0]]


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_a_gradient_reaches_the_windows_that_decide(kind: Pool) -> None:
    outputs = OUTPUTS.clone().requires_grad_()
    WindowPool.from_counts(COUNTS, kind)(outputs)[1].sum().backward()
    assert outputs.grad is not None
    third = [[1 / 3, 1 / 3]] * 3
    of_text = third if kind == "mean" else [[0, 0], [0, 1], [1, 0]]
    expected = torch.tensor([[0, 0], *of_text, [0, 0], [0, 0]], dtype=torch.float32)
    torch.testing.assert_close(outputs.grad, expected)
