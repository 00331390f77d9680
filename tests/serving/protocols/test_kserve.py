"""KServe V1: instances in either shape, and whether a model is ready."""

import pytest

from serving.interface import Limits
from serving.protocols.kserve import KServeInstance, instance_texts
from tests.support.fake_models import FakeModels, fake_model_info, fake_prediction
from tests.support.http_requests import json_answer, json_error

SENTIMENT = "/v1/models/sentiment"


def test_instances_of_both_shapes_keep_their_places() -> None:
    assert instance_texts(["a", KServeInstance(inputs="b"), "c"]) == ["a", "b", "c"]
    body = {"instances": [{"inputs": "a", "id": 5}, "b"]}
    found = json_answer(FakeModels(), "POST", "/v1/models/stars:predict", body)
    expected = [fake_prediction(text, "regression", 0).scores[0] for text in "ab"]
    assert found == {"predictions": expected}


@pytest.mark.parametrize(("state", "ready"), [("ready", True), ("cold", True), ("loading", False)])
def test_a_model_that_loads_on_its_first_request_is_ready(state: str, ready: bool) -> None:
    models = FakeModels()
    models.infos[0] = fake_model_info("sentiment", "2", state=state)
    assert json_answer(models, "GET", SENTIMENT)["ready"] is ready


def test_a_model_answers_to_the_reference_that_was_asked_for() -> None:
    assert json_answer(FakeModels(), "GET", f"{SENTIMENT}:1") == {
        "name": "sentiment:1",
        "ready": True,
        "id": "sentiment:1",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "bertha",
        "capabilities": ["classify"],
        "backend": "torch fp32",
        "stats": {},
        "max_model_len": 64,
    }


@pytest.mark.parametrize(("target", "label"), [(1, "positive"), ("0", "negative")])
def test_a_label_is_explained_by_its_index(target: int | str, label: str) -> None:
    body = {"instances": ["a film", "a plot"], "target": target}
    found = json_answer(FakeModels(), "POST", f"{SENTIMENT}:explain", body)
    assert [each["label"] for each in found["explanations"]] == [label] * 2


@pytest.mark.parametrize("call", ["predict", "explain"])
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "instances is missing; expected a list of texts"),
        ({"instances": []}, 400, "instances is empty"),
        ({"instances": ["a", " "]}, 400, "text 2 of instances is empty"),
        ({"instances": ["a"] * 3}, 413, "instances holds 3 texts"),
        ({"instances": ["a"], "target": True}, 400, "target = True: expected the label to explain"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(
    call: str, body: dict[str, object], status: int, words: str
) -> None:
    models = FakeModels(limits=Limits(max_texts=2))
    found, told = json_error(models, "POST", f"{SENTIMENT}:{call}", body)
    assert (found, words in told["error"]) == (status, True)
