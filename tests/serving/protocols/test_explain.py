"""Explanations on our own route: words with their places and weights, beside TorchServe's."""

from typing import Any

import pytest

from serving.protocols.default_format import score_labels
from tests.support.fake_models import FakeModels, fake_model_info, fake_prediction
from tests.support.http_requests import json_answer, json_error

TEXT = "a warm  film"


@pytest.mark.parametrize(
    ("path", "body", "version"),
    [
        ("/explain", {}, "2"),
        ("/explain/sentiment", {}, "2"),
        ("/explain/sentiment/1", {}, "1"),
        ("/explain/sentiment:1", {}, "1"),
        ("/explain", {"model": "sentiment:1"}, "1"),
        ("/explain/sentiment", {"model": "sentiment"}, "2"),
    ],
)
def test_words_have_places_and_weights(path: str, body: dict[str, Any], version: str) -> None:
    found = json_answer(FakeModels(), "POST", path, {"inputs": TEXT} | body)
    assert (found["model"], found["version"]) == ("sentiment", version)
    (explained,) = found["explanations"]
    words = explained["words"]
    assert [(each["text"], each["start"], each["end"]) for each in words] == [
        ("a", 0, 1),
        ("warm", 2, 6),
        ("film", 8, 12),
    ]
    assert {each["weight"] for each in words} == {0.5}
    prediction = fake_prediction(TEXT, "classification", 2)
    scores = score_labels(prediction, fake_model_info("sentiment"))
    assert explained["score"] == scores[explained["label"]] == max(prediction.scores)


def test_each_text_is_explained_and_the_label_may_be_named() -> None:
    body = {"inputs": [TEXT, "dull"], "label": "cast"}
    found = json_answer(FakeModels(), "POST", "/explain/topics", body)["explanations"]
    assert [each["label"] for each in found] == ["cast", "cast"]
    theirs = json_answer(
        FakeModels(), "POST", "/explanations/topics", {"data": [TEXT, "dull"], "target": "cast"}
    )
    for ours, other in zip(found, theirs, strict=True):
        assert [each["text"] for each in ours["words"]] == other["words"]
        assert [each["weight"] for each in ours["words"]] == other["importances"]
        assert ours["score"] == other["score"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/explain", {"inputs": "a", "label": "plot"}, 400, "expected one of negative, positive"),
        ("/explain", {"inputs": "a", "target": "positive"}, 400, "a label is named by `label`"),
        ("/explain", {"inputs": ""}, 400, "text 1 of inputs is empty"),
        ("/explain", {"inputs": []}, 400, "inputs is empty"),
        ("/explain", {}, 400, "inputs"),
        ("/explain/topics", {"inputs": "a", "model": "sentiment"}, 400, "leave one of them out"),
        ("/explain/nobody", {"inputs": "a"}, 404, "there is no model"),
        ("/explain/stars", {"inputs": "a"}, 424, "stars is for regression"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    path: str, body: dict[str, Any], status: int, words: str
) -> None:
    found, told = json_error(FakeModels(), "POST", path, body)
    assert found == status and words in str(told)
