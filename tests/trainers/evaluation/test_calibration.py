"""Calibration errors known by hand, and thresholds that are tuned only where it helps."""

import numpy as np
import pytest

from trainers.evaluation import calibration
from trainers.evaluation.intervals import Answers, compute_figures


def to_logits(shares: np.ndarray) -> np.ndarray:
    return np.log(shares / (1 - shares))


def test_expected_calibration_error_by_hand() -> None:
    # Eight answers of 0.75 of which half are right, two of 0.95 that are both right.
    shares = np.array([0.75] * 8 + [0.95] * 2)
    logits = np.stack([np.zeros(10), to_logits(shares)], axis=1)
    targets = np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1])
    error = calibration.expected_calibration_error(Answers("classification", logits, targets))
    assert error == pytest.approx(0.8 * 0.25 + 0.2 * 0.05)


def test_expected_calibration_error_of_labels() -> None:
    logits = to_logits(np.array([[0.25, 0.95], [0.25, 0.95]]))
    targets = np.array([[0, 1], [1, 1]], dtype=np.float32)
    error = calibration.expected_calibration_error(Answers("multi-label", logits, targets))
    assert error == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)


def timid_labels(rows: int, seed: int = 0) -> Answers:
    """A model that ranks label 0 well, but gives it no more than 0.4, and label 1 is sound."""
    source = np.random.default_rng(seed)
    true = source.random((rows, 2)) < 0.4
    timid = np.where(true[:, 0], source.uniform(0.2, 0.4, rows), source.uniform(0.01, 0.15, rows))
    sound = np.where(true[:, 1], source.uniform(0.6, 0.9, rows), source.uniform(0.1, 0.4, rows))
    logits = to_logits(np.stack([timid, sound], axis=1))
    return Answers("multi-label", logits, true.astype(np.float32))


def test_a_timid_label_gets_a_threshold_and_a_sound_one_none() -> None:
    answers = timid_labels(40)
    thresholds = calibration.tune_thresholds(answers, ("timid", "sound"), "f1")
    assert set(thresholds) == {"timid"} and 0.15 < thresholds["timid"] < 0.2
    shift = calibration.thresholds_to_shift(thresholds, ("timid", "sound"))
    other = timid_labels(200, seed=1)
    tuned = Answers("multi-label", other.outputs, other.targets, shift)
    assert compute_figures(other)["f1"] == pytest.approx(0.5)
    assert compute_figures(tuned)["f1"] > 0.95
    assert compute_figures(tuned)["loss"] == compute_figures(other)["loss"]


def test_two_classes_have_a_threshold_of_the_second() -> None:
    answers = timid_labels(60)
    scores = np.stack([np.zeros(60), answers.outputs[:, 0]], axis=1)
    binary = Answers("classification", scores + 3.0, answers.targets[:, 0].astype(np.int64))
    for metric in ("f1", "accuracy"):
        thresholds = calibration.tune_thresholds(binary, ("no", "yes"), metric)
        assert set(thresholds) == {"yes"} and 0.15 < thresholds["yes"] < 0.2
    shift = calibration.thresholds_to_shift(thresholds, ("no", "yes"))
    assert shift is not None and shift[0] == 0
    shares = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
    tuned = Answers("classification", binary.outputs, binary.targets, shift)
    assert (tuned.predicted == (shares >= thresholds["yes"])).all()


@pytest.mark.parametrize("seed", range(8))
def test_noise_gets_no_threshold(seed: int) -> None:
    source = np.random.default_rng(seed)
    targets = source.integers(0, 2, 60)
    sound = np.where(targets == 1, 1.0, -1.0) + source.normal(0, 1.0, 60)
    logits = np.stack([np.zeros(60), sound], axis=1)
    answers = Answers("classification", logits, targets)
    assert calibration.tune_thresholds(answers, ("no", "yes"), "accuracy") == {}


def test_few_rows_or_many_classes_get_none() -> None:
    answers = timid_labels(40)
    few = Answers("multi-label", answers.outputs[:9], answers.targets[:9])
    assert calibration.tune_thresholds(few, ("timid", "sound"), "f1") == {}
    three = Answers("classification", np.zeros((40, 3)), np.zeros(40, dtype=np.int64))
    assert calibration.tune_thresholds(three, ("a", "b", "c"), "f1") == {}
    number = Answers("regression", np.zeros((40, 1)), np.zeros(40))
    assert calibration.tune_thresholds(number, (), "r2") == {}
    assert calibration.thresholds_to_shift({}, ("a", "b")) is None


def test_a_model_that_is_right_at_half_keeps_it() -> None:
    """Of 40 calibrated models, each judged on 800 rows, hardly one is moved by chance."""
    moved = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        scores = draw.normal(0, 2.5, 800)
        true = draw.random(800) < 1 / (1 + np.exp(-scores))
        logits = np.stack([-scores / 2, scores / 2], axis=1).astype(np.float32)
        answers = Answers("classification", logits, true.astype(np.int64))
        moved += bool(calibration.tune_thresholds(answers, ("no", "yes"), "f1"))
    assert moved <= 1
