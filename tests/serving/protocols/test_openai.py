"""OpenAI's embeddings, and classification as vLLM and infinity have it, on bytes."""

import base64
from typing import Any

import numpy as np
import pytest

from serving.http.messages import HTTPError
from tests.support.fake_models import FakeModels, fake_prediction, fake_vector
from tests.support.http_requests import json_answer, json_error

SCORES = fake_prediction("a film", "classification", 2).scores


def test_floats_and_base64_are_the_same_vector() -> None:
    models = FakeModels()
    body = {"model": "mini", "input": "hi there"}
    plain = json_answer(models, "POST", "/v1/embeddings", body)
    packed = json_answer(models, "POST", "/v1/embeddings", body | {"encoding_format": "base64"})
    assert plain["data"][0]["embedding"] == fake_vector("hi there").tolist()
    unpacked = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(unpacked, fake_vector("hi there"))
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert (plain["object"], plain["model"]) == ("list", "mini")


def test_several_texts_keep_their_places() -> None:
    body = {"model": "mini", "input": ["a", "b"], "user": "somebody"}
    found = json_answer(FakeModels(), "POST", "/embeddings", body)
    assert [each["index"] for each in found["data"]] == [0, 1]
    assert found["data"][1]["embedding"] == fake_vector("b").tolist()


def test_fewer_dimensions_are_of_length_1_again() -> None:
    body = {"model": "mini", "input": "a", "dimensions": 3}
    (found,) = json_answer(FakeModels(), "POST", "/v1/embeddings", body)["data"]
    assert np.linalg.norm(found["embedding"]) == pytest.approx(1)
    assert len(found["embedding"]) == 3


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        (
            {"model": "mini", "input": [1, 50_257]},
            400,
            "unreadable",
            "check_embedding_ctx_length=False",
        ),
        ({"model": "mini", "input": [[1], [-1]]}, 400, "unreadable", "text 2"),
        ({"model": "mini", "input": [[1], "a"]}, 400, "malformed", "token ids of the model's"),
        ({"model": "mini", "input": [[]]}, 400, "empty", "text 1"),
        ({"model": "mini", "input": [1.5]}, 400, "malformed", "token ids of the model's"),
        ({"model": "mini"}, 400, "malformed", "input is missing"),
        ({"model": "mini", "input": "a", "dimensions": -1}, 400, "malformed", "dimensions = -1"),
        ({"model": "mini", "input": "a", "dimensions": 99}, 400, "malformed", "have 8"),
        ({"model": "mini", "input": "a", "encoding_format": "x"}, 400, "malformed", "base64"),
        ({"model": "mini", "input": ""}, 400, "empty", "text 1"),
        ({"model": "nobody", "input": "a"}, 404, "no_model", "nobody"),
        ({"model": "sentiment", "input": "a"}, 400, "wrong_task", "classification"),
        ({"model": 5, "input": "a"}, 400, "malformed", "model"),
    ],
)
def test_errors_are_in_openais_shape(body: Any, status: int, kind: str, words: str) -> None:
    found, told = json_error(FakeModels(), "POST", "/v1/embeddings", body)
    assert found == status
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert told["error"]["code"] == kind
    assert words in told["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "status", "type_"),
    [
        ("unauthorized", 401, "authentication_error"),
        ("overloaded", 429, "rate_limit_error"),
        ("failed", 500, "server_error"),
    ],
)
def test_errors_have_openais_types(kind: Any, status: int, type_: str) -> None:
    models = FakeModels()
    models.refusal = HTTPError(kind, "why")
    found, told = json_error(models, "POST", "/v1/embeddings", {"input": "a"})
    assert (found, told["error"]["type"]) == (status, type_)


def test_models_are_listed_for_openai_and_kserve() -> None:
    found = json_answer(FakeModels(), "GET", "/v1/models")
    assert found["object"] == "list"
    assert found["models"] == ["sentiment", "topics", "stars", "mini", "filler"]
    ids = [each["id"] for each in found["data"]]
    assert ids[:5] == found["models"]
    assert {"sentiment:1", "sentiment:2"} <= set(ids)
    assert found["data"][0] == {
        "id": "sentiment",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "bertha",
        "capabilities": ["classify"],
        "backend": "torch fp32",
        "stats": {},
        "max_model_len": 64,
    }


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_vllm_answers_probabilities_in_the_order_of_the_labels(path: str) -> None:
    found = json_answer(FakeModels(), "POST", path, {"model": "sentiment", "input": "a film"})
    assert found["object"] == "list"
    assert found["id"].startswith("classify-")
    assert found["data"] == [
        {
            "index": 0,
            "label": ("negative", "positive")[SCORES.index(max(SCORES))],
            "probs": list(SCORES),
            "num_classes": 2,
        }
    ]
    assert found["usage"]["prompt_tokens"] == 4


def test_vllms_activation_can_be_left_out() -> None:
    body = {"input": ["a film"], "use_activation": False}
    found = json_answer(FakeModels(), "POST", "/classify", body)
    assert found["data"][0]["probs"] == list(fake_prediction("a film", "classification", 2).logits)


@pytest.mark.parametrize(
    ("path", "headers"), [("/classify", {"x_api_style": "infinity"}), ("/infinity/classify", {})]
)
def test_infinity_answers_labels_by_falling_score(path: str, headers: dict[str, str]) -> None:
    found = json_answer(FakeModels(), "POST", path, {"input": ["a film"]}, **headers)
    assert found["object"] == "classify"
    ((first, second),) = found["data"]
    assert first["score"] == max(SCORES)
    assert second["score"] == min(SCORES)


def test_vllms_errors_carry_the_status() -> None:
    status, told = json_error(FakeModels(), "POST", "/classify", {"model": "mini", "input": "a"})
    assert status == 400
    assert told["error"]["type"] == "BadRequestError"
    assert told["error"]["code"] == 400
