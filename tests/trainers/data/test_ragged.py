"""Ragged arrays hold values of the type that was asked for."""

import numpy as np
import pytest

from trainers.data.ragged import ragged_from_rows


@pytest.mark.parametrize(("given", "asked"), [(np.int64, np.int32), (np.float64, np.float32)])
def test_rows_are_converted(given: type, asked: type) -> None:
    ragged = ragged_from_rows([np.array([1, 2], given), np.array([3], given)], asked)
    assert ragged.values.dtype == asked
    assert ragged.values.tolist() == [1, 2, 3]
    assert ragged_from_rows([], asked).values.dtype == asked
    with pytest.raises(TypeError):
        ragged_from_rows([np.array([0.5])], np.int32)
