"""The thresholds of a card decide the answer, whichever protocol gives it."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from serving.engine.engine import _logits_to_scores
from serving.interface import InferenceResult, Prediction, choose_labels
from tests.support.fake_models import FakeModels, fake_model_info
from tests.support.http_requests import json_answer
from trainers.evaluation.calibration import thresholds_to_shift
from trainers.evaluation.intervals import Answers

# The likeliest is "negative", and the answer is "positive".
UNSURE = Prediction((0.6, 0.4), (0.5, 0.1))
# The likeliest is "cast", and the answer is "plot" and "music".
MIXED = Prediction((0.3, 0.8, 0.6), (-0.8, 1.4, 0.4))
TEXT = "a film"


class Decided(FakeModels):
    """Two models that have thresholds, and whose answers are the same for every text."""

    def __init__(self) -> None:
        super().__init__()
        self.infos = [
            fake_model_info(
                "sentiment",
                thresholds={"positive": 0.35},
                verdict={"metric": "f1"},
                examples=("a held-out film",),
            ),
            fake_model_info("topics", thresholds={"plot": 0.2, "cast": 0.9}),
            fake_model_info("stars", target={"low": 1.0, "high": 5.0, "mean": 3.0}),
        ]

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        known = self.get_info(model)
        value = UNSURE if known.name == "sentiment" else MIXED
        return InferenceResult(known, [value] * len(texts), self._rows(texts))


def ask(method: str, path: str, body: Any = None) -> Any:
    return json_answer(Decided(), method, path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": TEXT}),
        ("/tei/sentiment/predict", {"inputs": TEXT}),
        ("/predict", {"inputs": TEXT, "raw_scores": True}),
        ("/invocations", {"inputs": TEXT}),
    ],
)
def test_the_answer_comes_first_in_a_list_of_labels(path: str, body: Any) -> None:
    found = ask("POST", path, body)
    assert [each["label"] for each in found] == ["positive", "negative"]
    scores = UNSURE.logits if body.get("raw_scores") else UNSURE.scores
    assert [each["score"] for each in found] == [scores[1], scores[0]], "scores stay scores"


def test_hugging_face_names_the_answer_where_one_label_is_asked_for() -> None:
    ((found,),) = ask("POST", "/hf/sentiment", {"inputs": TEXT, "parameters": {"top_k": 1}})
    assert found == {"label": "positive", "score": 0.4}
    (found,) = ask("POST", "/hf/topics", {"inputs": TEXT})
    assert [each["label"] for each in found] == ["music", "plot", "cast"]


def test_one_label_is_that_of_the_answer() -> None:
    for model, expected in (("sentiment", "positive"), ("topics", "music")):
        (vllm,) = ask("POST", "/classify", {"model": model, "input": TEXT})["data"]
        assert vllm["label"] == expected
        (infinity,) = ask("POST", "/infinity/classify", {"model": model, "input": TEXT})["data"]
        assert infinity[0]["label"] == expected


@pytest.mark.parametrize(
    ("path", "body", "inside"),
    [
        ("/v1/models/topics:predict", {"instances": [TEXT]}, lambda found: found["predictions"][0]),
        ("/predictions/topics", {"data": TEXT}, lambda found: found),
    ],
)
def test_a_map_of_labels_begins_with_the_answer(path: str, body: Any, inside: Any) -> None:
    assert list(inside(ask("POST", path, body)).items()) == [
        *(("music", 0.6), ("plot", 0.3), ("cast", 0.8))
    ]


def infer(model: str, **parameters: Any) -> dict[str, list[Any]]:
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]
    body = {"inputs": inputs, "parameters": parameters}
    found = ask("POST", f"/v2/models/{model}/infer", body)
    return {each["name"]: each["data"] for each in found["outputs"]}


def test_tensors_hold_the_answer_beside_all_probabilities() -> None:
    found = infer("sentiment")
    assert found["label"] == ["positive"] and "chosen" not in found
    assert found["probabilities"] == pytest.approx(list(UNSURE.scores))
    found = infer("topics")
    assert found["label"] == ["music"]
    assert found["chosen"] == [True, False, True], "in the order of the labels"
    assert infer("sentiment", top_k=1)["label"] == ["positive"]
    found = infer("topics", top_k=2)
    assert (found["label"], found["chosen"]) == (["music", "plot"], [True, True])
    assert infer("topics", top_k=9)["chosen"] == [True, True, False]


def test_the_thresholds_are_told() -> None:
    info = ask("GET", "/info")
    assert info["thresholds"] == {"positive": 0.35} and info["verdict"] == {"metric": "f1"}
    assert info["examples"] == ["a held-out film"] and info["target"] == {}
    assert ask("GET", "/tei/stars/info")["target"] == {"low": 1.0, "high": 5.0, "mean": 3.0}
    metadata = ask("GET", "/v2/models/topics")
    assert metadata["properties"]["thresholds"] == {"plot": 0.2, "cast": 0.9}
    assert [each["name"] for each in metadata["outputs"]] == ["label", "probabilities", "chosen"]
    assert metadata["outputs"][2]["datatype"] == "BOOL"
    config = ask("GET", "/v2/models/topics/config")
    assert json.loads(config["parameters"]["thresholds"]["string_value"])["cast"] == 0.9
    assert config["output"][2]["data_type"] == "TYPE_BOOL"


@pytest.mark.parametrize(
    ("task", "labels", "thresholds"),
    [
        ("classification", ("no", "yes"), {"yes": 0.23}),
        ("classification", ("no", "yes"), {"yes": 0.91}),
        ("classification", ("no", "yes"), {}),
        ("classification", ("a", "b", "c"), {}),
        ("multi-label", ("a", "b", "c"), {"a": 0.07, "c": 0.8}),
        ("multi-label", ("a", "b", "c"), {}),
    ],
)
def test_serving_decides_as_evaluation_did(
    task: Any, labels: tuple[str, ...], thresholds: dict[str, float]
) -> None:
    """What a threshold takes off a logit and what it asks of a probability is the same."""
    logits = np.random.default_rng(0).normal(0, 2, (500, len(labels))).astype(np.float32)
    shift = thresholds_to_shift(thresholds, labels)
    predicted = Answers(task, logits, np.zeros(500, int), shift).predicted
    for scores, expected in zip(_logits_to_scores(task, logits).tolist(), predicted, strict=True):
        chosen = choose_labels(scores, labels, task, thresholds)
        if task == "classification":
            assert chosen == (labels[expected],)
        else:
            assert chosen == tuple(np.array(labels)[expected])
