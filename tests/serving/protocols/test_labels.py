"""Labels by falling score, and logits under the function that a client asks for."""

import math

import pytest

from serving.interface import Prediction
from serving.protocols.labels import ScoreFunction, apply_function, most_likely, rank_labels


def test_the_highest_score_comes_first_and_equal_ones_keep_their_order() -> None:
    found = rank_labels([0.1, 0.4, 0.1, 0.4], ["a", "b", "c", "d"])
    assert [each["label"] for each in found] == ["b", "d", "a", "c"]
    assert found[0] == {"score": 0.4, "label": "b"}


@pytest.mark.parametrize(("top_k", "expected"), [(1, 1), (9, 3), (None, 3)])
def test_only_the_first_are_kept(top_k: int | None, expected: int) -> None:
    found = rank_labels([0.2, 0.5, 0.3], ["a", "b", "c"], top_k)
    assert [each["label"] for each in found] == ["b", "c", "a"][:expected]


def test_the_number_of_a_model_without_labels_is_called_value() -> None:
    assert rank_labels([4.5], []) == [{"score": 4.5, "label": "value"}]


def test_as_many_scores_as_labels() -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        rank_labels([0.2, 0.8], ["a", "b", "c"])


def test_of_equal_scores_the_first_label_is_the_likeliest() -> None:
    assert most_likely(Prediction((0.2, 0.4, 0.4), (0.0, 1.0, 1.0))) == 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, (0.3, 0.7)),
        ("none", (0.0, math.log(3))),
        ("softmax", (0.25, 0.75)),
        ("sigmoid", (0.5, 0.75)),
    ],
)
def test_a_function_is_of_the_logits(
    function: ScoreFunction | None, expected: tuple[float, ...]
) -> None:
    prediction = Prediction((0.3, 0.7), (0.0, math.log(3)))
    assert apply_function(prediction, function) == pytest.approx(expected)


def test_sigmoid_is_symmetric_and_nothing_overflows() -> None:
    prediction = Prediction((0.0,) * 3, (-2.0, 2.0, -1e5))
    low, high, none = apply_function(prediction, "sigmoid")
    assert (low, low + high, none) == (pytest.approx(1 / (1 + math.exp(2))), pytest.approx(1), 0.0)
    assert apply_function(Prediction((0.0,) * 2, (1e5, -1e5)), "softmax") == (1.0, 0.0)
