"""Profiles of held-out rows: what is counted, in bins that live texts fall into as well."""

import numpy as np
import pytest
from pydantic import ValidationError

from trainers.models.profile import (
    MAX_NAMES,
    NO_LABEL,
    OTHER_LABELS,
    Histogram,
    RowProfile,
    profile_rows,
)

UNKNOWN = 1
ROWS = [np.array([5] * length) for length in range(1, 101)]


def logits_of(probabilities: list[float]) -> np.ndarray:
    """Of two classes, of which the second has these probabilities."""
    second = np.log(np.array(probabilities) / (1 - np.array(probabilities)))
    return np.stack([np.zeros_like(second), second], axis=1).astype(np.float32)


def test_lengths_are_in_tenths_and_shares_in_fixed_bins() -> None:
    rows = [*ROWS[:-1], np.array([UNKNOWN] * 3 + [5] * 97)]
    logits = logits_of([0.05] * 60 + [0.97] * 40)
    found = profile_rows(
        "classification", ("no", "yes"), rows, logits, logits.argmax(axis=1), UNKNOWN
    )
    assert found is not None and found.rows == 100
    tokens = found.features["tokens"]
    assert len(tokens.counts) == 10 and max(tokens.counts) - min(tokens.counts) <= 2
    assert tokens.bins[0].startswith("<=") and tokens.bins[-1].startswith(">")
    assert [tokens.find_bin(len(row)) for row in rows] == sorted(
        tokens.find_bin(len(row)) for row in rows
    )
    recounted = np.bincount([tokens.find_bin(len(row)) for row in rows])
    assert tuple(recounted.tolist()) == tokens.counts
    unknown = found.features["unknown_tokens"]
    assert unknown.counts[0] == 99 and unknown.counts[unknown.find_bin(0.03)] == 1
    assert found.features["labels"] == Histogram(names=("no", "yes"), counts=(60, 40))
    confidence = found.features["confidence"]
    assert confidence.counts[confidence.find_bin(0.95)] == 60  # of the answer, whichever it is
    assert confidence.counts[confidence.find_bin(0.97)] == 40


def test_of_several_labels_each_counts_and_so_does_none() -> None:
    given = np.array([[1, 0], [1, 1], [0, 0]])
    found = profile_rows(
        "multi-label", ("a", "b"), ROWS[:3], np.array([[2.0, 0], [2, 2], [-2, -2]]), given, None
    )
    assert found is not None and "unknown_tokens" not in found.features
    assert found.features["labels"] == Histogram(names=("a", "b", NO_LABEL), counts=(2, 1, 1))
    assert found.features["confidence"].counts[1] == 1  # the highest of the last row is 0.12


def test_rare_ones_of_many_labels_are_one_bin() -> None:
    names = tuple(f"label {number}" for number in range(200))
    predicted = np.concatenate([np.arange(100), np.arange(60)])
    logits = np.eye(200, dtype=np.float32)[predicted]
    found = profile_rows("classification", names, ROWS * 2, logits, predicted, None)
    assert found is not None
    labels = found.features["labels"]
    assert labels.names == (*names[:MAX_NAMES], OTHER_LABELS)
    assert sum(labels.counts) == 160 and labels.counts[-1] == 60


def test_of_a_regression_values_are_counted_in_tenths() -> None:
    values = np.linspace(-3, 3, 100, dtype=np.float32)[:, None]
    found = profile_rows("regression", (), ROWS, values, values[:, 0], None)
    assert found is not None and set(found.features) == {"tokens", "values"}
    assert len(found.features["values"].counts) == 10


def test_equal_lengths_are_one_bin_beside_an_empty_one() -> None:
    found = profile_rows("regression", (), [ROWS[4]] * 50, np.ones((50, 1)), np.ones(50), None)
    assert found is not None
    assert found.features["tokens"] == Histogram(edges=(5.0,), counts=(50, 0))
    assert profile_rows("regression", (), [], np.ones((0, 1)), np.ones(0), None) is None


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"labels": {"names": ["a"], "counts": [1]}},
        {"tokens": {"edges": [1], "counts": [1]}},
        {"tokens": {"edges": [2, 1], "counts": [1, 1, 1]}},
        {"tokens": {"edges": [1], "counts": [1, -1]}},
        {"tokens": {"edges": list(range(999)), "counts": [1] * 1000}},
        {"tokens": {"edges": [1], "counts": [1, 1]}, "x": {"edges": [1], "counts": [1, 1]}},
    ],
)
def test_a_profile_that_nobody_wrote_so_is_refused(features: object) -> None:
    with pytest.raises(ValidationError):
        RowProfile.model_validate({"rows": 1, "features": features})
