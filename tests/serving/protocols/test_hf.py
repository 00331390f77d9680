"""Hugging Face Inference on bytes: the model's task decides what is meant."""

from typing import Any

import pytest

from tests.support.fake_models import FakeModels, fake_prediction, fake_vector
from tests.support.http_requests import json_answer, json_error


def test_labels_come_nested() -> None:
    scores = fake_prediction("a film", "classification", 2).scores
    expected = sorted(
        (
            {"label": label, "score": score}
            for label, score in zip(("negative", "positive"), scores, strict=True)
        ),
        key=lambda each: -each["score"],
    )
    for path in ("/", "/hf/sentiment", "/hf/sentiment:2", "/hf/sentiment%40best"):
        found = json_answer(FakeModels(), "POST", path, {"inputs": "a film", "parameters": {}})
        assert found == [expected]


def test_top_k_is_applied_here() -> None:
    body = {"inputs": ["a", "b"], "parameters": {"top_k": 1}}
    found = json_answer(FakeModels(), "POST", "/hf/topics", body)
    assert [len(each) for each in found] == [1, 1]


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_function_is_of_the_clients_choice(function: str) -> None:
    body = {"inputs": "a film", "parameters": {"function_to_apply": function}}
    (found,) = json_answer(FakeModels(), "POST", "/", body)
    logits = fake_prediction("a film", "classification", 2).logits
    scores = [each["score"] for each in found]
    if function == "none":
        assert scores == sorted(logits, reverse=True)
    elif function == "softmax":
        assert sum(scores) == pytest.approx(1)
        assert scores[0] == pytest.approx(
            max(fake_prediction("a film", "classification", 2).scores)
        )
    else:
        assert all(0 < score < 1 for score in scores)


def test_one_mask_gets_its_tokens_and_several_get_lists() -> None:
    models = FakeModels()
    one = json_answer(
        models, "POST", "/hf/filler", {"inputs": "a [MASK]", "parameters": {"top_k": 2}}
    )
    assert [each["token_str"] for each in one] == ["film", "plot"]
    assert one[0] == {"score": 0.5, "token": 0, "token_str": "film", "sequence": "a film"}
    two = json_answer(models, "POST", "/hf/filler", {"inputs": "[MASK] [MASK]"})
    assert [len(of_mask) for of_mask in two] == [5, 5]
    batch = json_answer(models, "POST", "/hf/filler", {"inputs": ["[MASK]", "a [MASK]"]})
    assert batch[1][0]["sequence"] == "a film"


def test_targets_limit_the_tokens() -> None:
    body = {"inputs": "a [MASK]", "parameters": {"targets": ["moon"]}}
    (found,) = json_answer(FakeModels(), "POST", "/hf/filler", body)
    assert found["token_str"] == "moon"


def test_vectors_and_similarities() -> None:
    models = FakeModels()
    found = json_answer(models, "POST", "/hf/mini", {"inputs": "hi", "normalize": True})
    assert found == [fake_vector("hi").tolist()]
    inputs = {"source_sentence": "a", "sentences": ["b", "a"]}
    near = json_answer(models, "POST", "/hf/mini", {"inputs": inputs, "parameters": {}})
    assert near == pytest.approx([float(fake_vector("a") @ fake_vector("b")), 1], abs=1e-6)


@pytest.mark.parametrize(
    ("model", "body", "status", "words"),
    [
        ("sentiment", {"inputs": {"question": "a", "context": "b"}}, 400, "for classification"),
        (
            "sentiment",
            {"inputs": "a", "parameters": {"candidate_labels": ["x"]}},
            400,
            "zero-shot",
        ),
        ("mini", {"inputs": {"question": "a", "context": "b"}}, 400, "source_sentence"),
        ("mini", {"inputs": {"source_sentence": "a", "sentences": "b"}}, 400, "sentences"),
        ("mini", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, "at least one"),
        ("sentiment", {"inputs": 5}, 400, "inputs = 5"),
        ("sentiment", {"inputs": "a", "parameters": {"top_k": 0}}, 400, "parameters.top_k = 0"),
        ("sentiment", {"inputs": "a", "parameters": {"function_to_apply": "x"}}, 400, "softmax"),
        ("sentiment", {"inputs": list("abcde")}, 413, "at most 4"),
        ("nobody", {"inputs": "a"}, 404, "nobody"),
        ("filler", {"inputs": "no mask"}, 422, "MASK"),
    ],
)
def test_what_cannot_be_answered_says_why(model: str, body: Any, status: int, words: str) -> None:
    found, told = json_error(FakeModels(), "POST", f"/hf/{model}", body)
    assert (found, set(told)) == (status, {"error"})
    assert words in told["error"]
