"""Labels by falling score, and logits under the function that a client asks for."""

import math

import pytest

from serving.interface import Prediction
from serving.protocols.labels import (
    ScoreFunction,
    answer_index,
    apply_function,
    choose_labels,
    rank_answer,
    rank_labels,
)
from tests.support.fake_models import fake_model_info


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


def test_of_equal_scores_the_first_label_is_the_one_to_name() -> None:
    topics = fake_model_info("topics", thresholds={})
    assert answer_index(Prediction((0.2, 0.4, 0.4), (0.0, 1.0, 1.0)), topics) == 1


def test_the_label_to_name_is_of_the_answer_and_without_one_the_likeliest() -> None:
    topics = fake_model_info("topics", thresholds={"plot": 0.2, "cast": 0.9, "music": 0.9})
    assert answer_index(Prediction((0.3, 0.8, 0.1), (0.0,) * 3), topics) == 0
    assert answer_index(Prediction((0.1, 0.8, 0.1), (0.0,) * 3), topics) == 1


def test_the_answer_comes_first_and_the_rest_by_falling_score() -> None:
    topics = fake_model_info("topics", thresholds={"plot": 0.2, "cast": 0.9})
    prediction = Prediction((0.3, 0.8, 0.6), (-1.0, 1.5, 0.5))
    found = rank_answer(prediction, topics)
    assert found == [
        {"score": 0.6, "label": "music"},
        {"score": 0.3, "label": "plot"},
        {"score": 0.8, "label": "cast"},
    ]
    assert [each["score"] for each in rank_answer(prediction, topics, prediction.logits)] == [
        *(0.5, -1.0, 1.5)
    ]
    assert rank_answer(prediction, topics, top_k=1) == found[:1]
    stars = Prediction((4.5,), (4.5,))
    assert rank_answer(stars, fake_model_info("stars")) == [{"score": 4.5, "label": "value"}]


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


@pytest.mark.parametrize(
    ("scores", "thresholds", "expected"),
    [
        ((0.6, 0.4), {}, "no"),
        ((0.6, 0.4), {"yes": 0.4}, "yes"),
        ((0.61, 0.39), {"yes": 0.4}, "no"),
        ((0.2, 0.8), {"yes": 0.9}, "no"),
    ],
)
def test_of_two_classes_the_second_needs_its_threshold(
    scores: tuple[float, float], thresholds: dict[str, float], expected: str
) -> None:
    assert choose_labels(scores, ("no", "yes"), "classification", thresholds) == (expected,)


def test_of_several_classes_the_likeliest_is_the_answer_whatever_the_thresholds_say() -> None:
    names, thresholds = ("a", "b", "c"), {"b": 0.1, "c": 0.1}
    assert choose_labels((0.4, 0.3, 0.3), names, "classification", thresholds) == ("a",)
    assert choose_labels((0.3, 0.35, 0.35), names, "classification", {}) == ("b",)


def test_each_of_several_labels_has_a_threshold_of_its_own() -> None:
    names, thresholds = ("a", "b", "c"), {"a": 0.2, "b": 0.9}
    assert choose_labels((0.3, 0.8, 0.5), names, "multi-label", thresholds) == ("a", "c")
    assert choose_labels((0.1, 0.8, 0.4), names, "multi-label", thresholds) == ()


def test_a_number_has_no_labels() -> None:
    assert choose_labels((3.5,), (), "regression", {}) == ()
