"""Classification as vLLM and infinity have it: scores or logits, and errors by status."""

import json
from typing import Any

import pytest

from serving.http.messages import HTTPError
from serving.protocols.vllm import error_body
from tests.support.fake_models import FakeModels, fake_prediction
from tests.support.http_requests import json_answer

LABELS = ("plot", "cast", "music")
ANSWERS = [fake_prediction(text, "multi-label", 3) for text in ("a film", "b")]


def classify(path: str = "/classify", model: str = "topics", **body: Any) -> dict[str, Any]:
    request = {"model": model, "input": ["a film", "b"], **body}
    found: dict[str, Any] = json_answer(FakeModels(), "POST", path, request)
    return found


@pytest.mark.parametrize(
    ("options", "logits"),
    [
        ({}, False),
        ({"use_activation": True}, False),
        ({"use_activation": None}, False),
        ({"use_activation": False}, True),
        ({"raw_scores": True}, True),
        ({"use_activation": True, "raw_scores": True}, True),
    ],
)
@pytest.mark.parametrize("path", ["/classify", "/infinity/classify"])
def test_scores_are_logits_where_the_request_says_so(
    path: str, options: dict[str, Any], logits: bool
) -> None:
    data = classify(path, **options)["data"]
    for found, answer in zip(data, ANSWERS, strict=True):
        expected = list(answer.logits if logits else answer.scores)
        if path == "/classify":
            assert found["probs"] == expected
        else:
            assert [each["score"] for each in found] == sorted(expected, reverse=True)
            assert found[0]["label"] == LABELS[expected.index(max(expected))]


def test_each_text_has_its_place_and_its_likeliest_label() -> None:
    found = classify()
    assert [(each["index"], each["num_classes"]) for each in found["data"]] == [(0, 3), (1, 3)]
    for each, answer in zip(found["data"], ANSWERS, strict=True):
        assert each["label"] == LABELS[answer.scores.index(max(answer.scores))]
    assert (found["object"], found["model"]) == ("list", "topics")
    assert found["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert classify()["id"] != found["id"]


def test_a_regression_has_one_class_called_value() -> None:
    value = fake_prediction("a film", "regression", 0).scores[0]
    (found, _) = classify(model="stars")["data"]
    assert found == {"index": 0, "label": "value", "probs": [value], "num_classes": 1}
    ((found,), _) = classify("/infinity/classify", model="stars")["data"]
    assert found == {"score": value, "label": "value"}


@pytest.mark.parametrize(("style", "kind"), [("Infinity", "classify"), ("vllm", "list")])
def test_the_style_is_of_the_clients_choice(style: str, kind: str) -> None:
    found = json_answer(
        FakeModels(), "POST", "/v1/classify", {"input": "a film"}, x_api_style=style
    )
    assert found["object"] == kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "BadRequestError"),
        (401, "AuthenticationError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (413, "BadRequestError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
def test_errors_are_of_vllms_types(status: int, kind: str) -> None:
    assert json.loads(error_body(HTTPError("malformed", "why"), status)) == {
        "error": {"message": "why", "type": kind, "param": None, "code": status}
    }
