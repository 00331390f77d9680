"""The Open Inference Protocol on bytes: tensors in JSON and in bytes, and what models tell."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.interface import Limits
from serving.protocols.oip_tensors import pack_texts
from tests.support.fake_models import FakeModels, fake_model_info, fake_prediction, fake_vector
from tests.support.http_requests import json_answer, json_error, send_request
from trainers.data.cleaning import is_blank

INFER = "/v2/models/sentiment/infer"
TEXTS = ["a film", "ü\U0001f3ac"]
SCORES = [fake_prediction(text, "classification", 2).scores for text in TEXTS]


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": TEXTS}
    return {"inputs": [tensor | changes]}


def binary(texts: list[str], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request as tritonclient sends it: JSON, the tensor behind it, and where the JSON ends."""
    tail = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    tensor = {"name": "text", "shape": [len(texts)], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(tail)}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + tail, {"inference-header-content-length": str(len(head))}


def outputs(found: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output for output in found["outputs"]}


def test_labels_and_probabilities_in_json() -> None:
    found = json_answer(FakeModels(), "POST", INFER, request() | {"id": "7"})
    assert (found["model_name"], found["model_version"], found["id"]) == ("sentiment", "2", "7")
    by_name = outputs(found)
    assert by_name["label"]["shape"] == [2]
    assert by_name["label"]["data"] == [
        ("negative", "positive")[scores.index(max(scores))] for scores in SCORES
    ]
    assert by_name["probabilities"] == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [2, 2],
        "data": [score for scores in SCORES for score in scores],
    }


def test_tokens_are_counted_where_it_is_asked_for() -> None:
    found = json_answer(FakeModels(), "POST", INFER, request())
    assert "parameters" not in found
    asked = request() | {"parameters": {"count_tokens": True}}
    found = json_answer(FakeModels(), "POST", INFER, asked)
    assert found["parameters"] == {"num_tokens": [4, 3], "max_tokens": 64}
    assert outputs(found)["label"]["shape"] == [2]


@pytest.mark.parametrize("shape", [[2], [2, 1], [1, 2]])
def test_texts_may_be_nested_as_their_shape(shape: list[int]) -> None:
    data = np.array(TEXTS, object).reshape(shape).tolist()
    found = json_answer(FakeModels(), "POST", INFER, request(shape=shape, data=data))
    assert outputs(found)["probabilities"]["shape"] == [2, 2]


def test_binary_in_and_out_is_what_json_is() -> None:
    body, headers = binary(TEXTS, parameters={"binary_data_output": True})
    reply = send_request(FakeModels(), "POST", INFER, body, headers)
    assert (reply.status, reply.media_type) == (200, "application/octet-stream")
    length = int(dict(reply.headers)["inference-header-content-length"])
    found, tail = json.loads(reply.body[:length]), reply.body[length:]
    label, probabilities = found["outputs"]
    size = label["parameters"]["binary_data_size"]
    assert tail[:size] == pack_texts(
        [("negative", "positive")[scores.index(max(scores))] for scores in SCORES]
    )
    assert len(tail) - size == probabilities["parameters"]["binary_data_size"] == 16
    np.testing.assert_array_equal(np.frombuffer(tail[size:], "<f4").reshape(2, 2), SCORES)


def test_each_output_may_be_binary_or_not() -> None:
    wanted = [
        {"name": "probabilities", "parameters": {"binary_data": True}},
        {"name": "label", "parameters": {"binary_data": False}},
    ]
    body, headers = binary(TEXTS, outputs=wanted)
    reply = send_request(FakeModels(), "POST", INFER, body, headers)
    length = int(dict(reply.headers)["inference-header-content-length"])
    first, second = json.loads(reply.body[:length])["outputs"]
    assert (first["name"], first["parameters"]) == ("probabilities", {"binary_data_size": 16})
    assert "data" in second
    assert len(reply.body) - length == 16


def test_a_body_without_json_is_one_text() -> None:
    headers = {"inference-header-content-length": "0"}
    reply = send_request(FakeModels(), "POST", INFER, b"a film", headers)
    data = outputs(json.loads(reply.body))["probabilities"]["data"]
    assert data == list(SCORES[0])


def test_the_classification_extension() -> None:
    wanted = [{"name": "probabilities", "parameters": {"classification": 1}}]
    found = json_answer(FakeModels(), "POST", INFER, request() | {"outputs": wanted})
    (output,) = found["outputs"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
    value, index, label = output["data"][0].split(":")
    assert np.float32(value) == np.float32(max(SCORES[0]))
    assert label == ("negative", "positive")[int(index)]
    assert int(index) == SCORES[0].index(max(SCORES[0]))


def test_top_k_sorts_and_cuts() -> None:
    body = request() | {"parameters": {"top_k": 2}}
    by_name = outputs(json_answer(FakeModels(), "POST", "/v2/models/topics/infer", body))
    assert by_name["label"]["shape"] == by_name["probabilities"]["shape"] == [2, 2]
    first = by_name["probabilities"]["data"]
    assert first[0] >= first[1]
    assert first[0] == max(fake_prediction(TEXTS[0], "multi-label", 3).scores)


def test_every_task_has_its_outputs() -> None:
    models = FakeModels()
    value = outputs(json_answer(models, "POST", "/v2/models/stars/infer", request()))["value"]
    assert value["data"] == [fake_prediction(text, "regression", 0).scores[0] for text in TEXTS]
    found = outputs(json_answer(models, "POST", "/v2/models/mini/infer", request()))["embedding"]
    assert (found["shape"], found["data"][:8]) == ([2, 8], fake_vector(TEXTS[0]).tolist())
    masked = request(data=["a [MASK]", "b [MASK]"]) | {"parameters": {"top_k": 3}}
    filled = outputs(json_answer(models, "POST", "/v2/models/filler/infer", masked))
    assert all(output["shape"] == [2, 1, 3] for output in filled.values())
    assert filled["token_str"]["data"][:3] == ["film", "plot", "cast"]
    assert filled["token"] == {
        "name": "token",
        "datatype": "INT64",
        "shape": [2, 1, 3],
        "data": [0, 1, 2, 0, 1, 2],
    }


@pytest.mark.parametrize("name", ["sentiment", "topics", "stars", "mini", "filler"])
def test_answers_are_what_the_metadata_says(name: str) -> None:
    models = FakeModels()
    told = json_answer(models, "GET", f"/v2/models/{name}")
    data = ["a [MASK]", "b [MASK]"]
    found = outputs(json_answer(models, "POST", f"/v2/models/{name}/infer", request(data=data)))
    assert list(found) == [output["name"] for output in told["outputs"]]
    for output in told["outputs"]:
        answered = found[output["name"]]
        assert answered["datatype"] == output["datatype"]
        assert len(answered["shape"]) == len(output["shape"])
        for there, said in zip(answered["shape"], output["shape"], strict=True):
            assert said in (-1, there)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"inputs": []}, "0 tensors"),
        ({"inputs": request()["inputs"] * 2}, "2 tensors"),
        (request(datatype="FP32"), "datatype is 'FP32'"),
        (request(shape=[3]), "2 texts, but the shape [3] holds 3"),
        (request(shape=[-2]), "inputs[0].shape[0] = -2"),
        (request(shape=[1] * 9), "inputs[0].shape"),
        (request(shape=[10**30]), "inputs[0].shape[0]"),
        (request(data="a"), "1 texts"),
        (request(data=[1, 2]), "data = [1, 2]: expected a list of texts"),
        (request(data=None), "expected a list of texts"),
        (request(data=[["a"], "b"]), "expected a list of texts"),
        (request(parameters={"binary_data_size": 4}), "0 bytes stand behind"),
        (request(parameters={"binary_data_size": -4}), "binary_data_size"),
        (request() | {"outputs": [{"name": "nothing"}]}, "label, probabilities"),
        (request() | {"id": 5}, "id = 5"),
        (request() | {"parameters": {"top_k": 0}}, "parameters.top_k = 0"),
        (
            request() | {"outputs": [{"name": "label", "parameters": {"classification": 1}}]},
            "only probabilities",
        ),
        ({}, "inputs is missing; expected a list of one tensor"),
        ({"inputs": [{"name": "text", "shape": [1]}]}, "inputs[0].datatype is missing"),
    ],
)
def test_malformed_requests_name_the_key(body: Any, words: str) -> None:
    status, told = json_error(FakeModels(), "POST", INFER, body)
    assert (status, set(told)) == (400, {"error"})
    assert words in told["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body + b"x", "bytes stand behind"),
        (lambda body: body[:-1], "bytes stand behind"),
        (lambda body: body[:-10] + b"\xff\xff\xff\xff" + body[-6:], "the element at byte 0"),
        (lambda body: body[:-1] + b"\xff", "not UTF-8"),
    ],
)
def test_binary_that_lies_is_refused(change: Any, words: str) -> None:
    body, headers = binary(["a film"])
    status, told = json_error(
        FakeModels(),
        "POST",
        INFER,
        change(body),
        **{k.replace("-", "_"): v for k, v in headers.items()},
    )
    assert status == 400
    assert words in told["error"]


@pytest.mark.parametrize("length", ["-1", "999", "x", "1e3", "²", "9" * 30])
def test_a_length_that_lies_is_refused(length: str) -> None:
    status, told = json_error(
        FakeModels(), "POST", INFER, b"{}", inference_header_content_length=length
    )
    assert status == 400
    assert "inference-header-content-length" in told["error"]


def test_too_many_texts_are_refused_before_they_are_read() -> None:
    status, told = json_error(FakeModels(), "POST", INFER, request(shape=[2000, 2000], data=[]))
    assert status == 413
    assert "4000000 texts" in told["error"]


def test_uneven_masks_are_refused() -> None:
    body = request(data=["[MASK]", "[MASK] [MASK]"])
    status, told = json_error(FakeModels(), "POST", "/v2/models/filler/infer", body)
    assert status == 400
    assert "1 to 2 masks" in told["error"]


@settings(deadline=None)
@given(
    st.lists(st.text(max_size=20).filter(lambda text: not is_blank(text)), min_size=1, max_size=4)
)
def test_texts_arrive_as_they_were_packed(texts: list[str]) -> None:
    body, headers = binary(texts)
    reply = send_request(FakeModels(limits=Limits(max_texts=4)), "POST", INFER, body, headers)
    by_name = outputs(json.loads(reply.body))
    expected = [fake_prediction(text, "classification", 2).scores for text in texts]
    assert by_name["probabilities"]["data"] == [score for row in expected for score in row]


def test_health_and_readiness() -> None:
    models = FakeModels()
    assert json_answer(models, "GET", "/v2/health/live") == {"live": True}
    assert json_answer(models, "GET", "/v2/health/ready") == {"ready": True}
    ready = json_answer(models, "GET", "/v2/models/sentiment/versions/1/ready")
    assert ready == {"name": "sentiment", "ready": True}  # cold: it loads when it is asked
    models.sound = False
    assert json_error(models, "GET", "/v2/health/ready")[0] == 503
    assert json_error(models, "GET", "/v2/models/nobody/ready")[0] == 404


def test_what_the_server_and_models_tell() -> None:
    models = FakeModels()
    assert "binary_tensor_data" in json_answer(models, "GET", "/v2")["extensions"]
    assert json_answer(models, "GET", "/v2/models")["models"][0] == "sentiment"
    assert json_answer(models, "GET", "/v2/models/sentiment")["versions"] == ["2", "1"]
    config = json_answer(models, "GET", "/v2/models/sentiment/versions/1/config")
    assert config["max_batch_size"] == 4
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    (stats,) = json_answer(models, "GET", "/v2/models/sentiment/stats")["model_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (12, 3)
    assert stats["inference_stats"]["success"] == {"count": 10, "ns": 500_000_000}
    everything = json_answer(models, "GET", "/v2/models/stats")["model_stats"]
    assert len(everything) == len(models.infos)


def test_the_repository() -> None:
    models = FakeModels()
    index = json_answer(models, "POST", "/v2/repository/index")
    assert index[0] == {"name": "sentiment", "version": "2", "state": "READY", "reason": ""}
    assert index[-1] == {"name": "sentiment", "version": "1", "state": "READY", "reason": ""}
    models.infos[0] = fake_model_info("sentiment", "2", state="loading")
    loading = json_answer(models, "POST", "/v2/repository/index")[0]
    assert (loading["state"], loading["reason"]) == ("UNAVAILABLE", "loading")
    ready = json_answer(models, "POST", "/v2/repository/index", {"ready": True})
    assert len(ready) == len(index) - 1
    assert send_request(models, "POST", "/v2/repository/models/mini/load", b"{}").body == b""
    send_request(models, "POST", "/v2/repository/models/mini/unload", b"{}")
    assert models.managed is not None
    assert models.managed.calls == [("load", "mini"), ("unload", "mini")]
    models.managed = None
    assert json_error(models, "POST", "/v2/repository/models/mini/load")[0] == 405
