"""A temperature is found where probabilities are off, and only there."""

import numpy as np
import pytest

from trainers.evaluation.calibration import expected_calibration_error
from trainers.evaluation.tally import Answers
from trainers.evaluation.temperature import fit_temperature


def draw_answers(seed: int, rows: int, factor: float, classes: int = 3) -> Answers:
    """Return answers whose logits are `factor` times those of the probabilities that are true."""
    source = np.random.default_rng(seed)
    logits = source.normal(0, 1.5, (rows, classes))
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    targets = (shares.cumsum(axis=1) > source.random((rows, 1))).argmax(axis=1)
    return Answers("classification", (factor * logits).astype(np.float32), targets)


def draw_labels(seed: int, rows: int, factor: float) -> Answers:
    source = np.random.default_rng(seed)
    logits = source.normal(0, 1.5, (rows, 4))
    true = source.random((rows, 4)) < 1 / (1 + np.exp(-logits))
    return Answers("multi-label", factor * logits, true.astype(np.float32))


@pytest.mark.parametrize("draw", [draw_answers, draw_labels])
@pytest.mark.parametrize("factor", [3.0, 0.4])
def test_the_factor_is_found_and_the_error_falls(draw: object, factor: float) -> None:
    answers = draw(0, 600, factor)  # type: ignore[operator]
    found = fit_temperature(answers)
    assert found == pytest.approx(factor, rel=0.15)
    other = draw(1, 3000, factor)  # type: ignore[operator]
    scaled = Answers(other.task, other.outputs / found, other.targets)
    assert expected_calibration_error(scaled) < 0.03
    assert expected_calibration_error(other) > 0.08
    assert np.array_equal(scaled.predicted, other.predicted)
    assert scaled.losses.mean() < other.losses.mean()


def test_sound_probabilities_are_left_alone() -> None:
    kept = [fit_temperature(draw_answers(seed, 300, 1.0)) for seed in range(30)]
    assert sum(temperature != 1.0 for temperature in kept) <= 1


def test_what_may_be_chance_is_not_kept() -> None:
    kept = [fit_temperature(draw_answers(seed, 80, 1.3)) for seed in range(12)]
    assert kept.count(1.0) >= 11  # of these, five would be better on the rows at hand


def test_few_rows_and_numbers_have_none() -> None:
    assert fit_temperature(draw_answers(0, 40, 5.0)) == 1.0
    assert fit_temperature(Answers("regression", np.zeros((80, 1)), np.ones(80))) == 1.0


def test_rows_that_are_all_right_do_not_promise_certainty() -> None:
    targets = np.random.default_rng(0).integers(0, 2, 100)
    answers = Answers("classification", 2.0 * np.eye(2)[targets], targets)
    found = fit_temperature(answers)
    assert found < 1
    assert 0.004 < 1 - 1 / (1 + np.exp(-2.0 / found)) < 0.02  # half of 1 of 100 + 2 rows
