"""Robust least squares on problems whose answer is known."""

import numpy as np
import pytest

from cluster.costmodel.least_squares import MAX_STEP, FloatArray, least_squares

X = np.linspace(-1, 1, 21)


def line(parameters: FloatArray) -> FloatArray:
    return parameters[0] + parameters[1] * X


def test_a_line_is_found_from_far_off() -> None:
    found = least_squares(lambda at: line(at) - line(np.array([0.7, -1.3])), np.array([4.0, 3.0]))
    assert found == pytest.approx([0.7, -1.3], abs=1e-3)


def test_a_curve_is_found() -> None:
    def residuals(at: FloatArray) -> FloatArray:
        return np.exp(at[0] * X) + at[1] ** 2 - (np.exp(0.5 * X) + 4.0)

    assert least_squares(residuals, np.array([0.0, 1.0])) == pytest.approx([0.5, 2.0], abs=1e-2)


def test_measurements_far_off_pull_little() -> None:
    """The mean of the measurements would be 0.64 off, their median not at all."""
    measured = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.0, 4.5])
    (found,) = least_squares(lambda at: at[0] - measured, np.array([1.0]))
    assert abs(found) < 0.01


def test_a_parameter_that_changes_nothing_stays() -> None:
    found = least_squares(lambda at: at[:1] - 0.3, np.array([0.0, 5.0]))
    assert found == pytest.approx([0.3, 5.0], abs=1e-2)


def test_no_round_steps_further_than_allowed() -> None:
    (found,) = least_squares(lambda at: at - 100.0, np.array([0.0]), rounds=1)
    assert 0 < found <= 2 * MAX_STEP, "a round in each of two passes"


def test_the_answer_is_never_worse_than_the_start() -> None:
    """The slope at the start points past a narrow valley, so the first steps overshoot."""

    def residuals(at: FloatArray) -> FloatArray:
        return np.array([np.sin(40 * at[0]), 0.1 * at[0]])

    start = np.array([0.03])
    found = least_squares(residuals, start)
    assert np.square(residuals(found)).sum() < np.square(residuals(start)).sum()
