"""Addresses and shapes that clients expect, of whatever server they were written for."""

import base64
import gzip
import json
from typing import Any

import httpx
import numpy as np
import pytest

from serving import protocols
from serving.http.asgi import App
from serving.interface import TextInput
from tests.support.fake_models import FakeModels, fake_prediction, fake_vector
from tests.support.http_requests import json_answer, json_error, send_request
from tests.support.servers import serve_app

EMBEDDING_PATHS = [
    "/v1/embeddings",
    "/embeddings",
    "/openai/v1/embeddings",
    "/infinity/embeddings",
    "/openai/mini/v1/embeddings",
    "/infinity/mini/embeddings",
    "/tei/mini/v1/embeddings",
    "/tei/mini/embeddings",
    "/openai/deployments/mini/embeddings?api-version=2024-02-01",
]


@pytest.mark.parametrize("path", EMBEDDING_PATHS)
def test_embeddings_stand_below_every_prefix(path: str) -> None:
    # Where the path names a model, clients must name another: one that their library knows.
    named = "text-embedding-ada-002" if "/mini" in path else "mini"
    body = {"model": named, "input": ["a film"], "dimensions": 0}
    (found,) = json_answer(FakeModels(), "POST", path, body)["data"]
    assert found["embedding"] == fake_vector("a film").tolist()


def test_token_ids_are_read_as_they_are() -> None:
    models = FakeModels()
    body = {"model": "mini", "input": [[101, 7, 102], [101, 102]], "encoding_format": "base64"}
    data = json_answer(models, "POST", "/v1/embeddings", body)["data"]
    ids = [text.ids for text in models.inputs if isinstance(text, TextInput)]
    assert ids == [(101, 7, 102), (101, 102)]
    vector = np.frombuffer(base64.b64decode(data[0]["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, fake_vector("101 7 102"))
    json_answer(models, "POST", "/classify", {"model": "sentiment", "input": [101, 102]})
    assert [text.ids for text in models.inputs if isinstance(text, TextInput)] == [(101, 102)]


@pytest.mark.parametrize("path", ["/infinity/models", "/v1/models", "/openai/v1/models", "/models"])
def test_models_are_listed_with_what_they_can(path: str) -> None:
    data = json_answer(FakeModels(), "GET", path)["data"]
    capabilities = {each["id"]: each["capabilities"] for each in data}
    assert capabilities["mini"] == ["embed"] and capabilities["sentiment"] == ["classify"]


def test_infinitys_client_finds_its_own_name_alone() -> None:
    for path, owner in (("/infinity/models", "infinity"), ("/v1/models", "bertha")):
        data = json_answer(FakeModels(), "GET", path)["data"]
        assert {each["owned_by"] for each in data} == {owner}
    (of_model,) = json_answer(FakeModels(), "GET", "/infinity/mini/models")["data"]
    assert of_model["owned_by"] == "infinity"


def test_a_model_prefix_lists_one_model() -> None:
    for path in ("/tei/mini/v1/models", "/infinity/mini/models", "/openai/mini/v1/models"):
        assert json_answer(FakeModels(), "GET", path)["models"] == ["mini"]
        assert json_error(FakeModels(), "GET", path.replace("mini", "nobody"))[0] == 404


def test_a_model_is_described_below_its_own_path() -> None:
    for path in ("/openai/mini/v1/models/mini", "/infinity/mini/models/mini:1", "/models/mini"):
        found = json_answer(FakeModels(), "GET", path)
        assert found["id"] == path.rpartition("/")[2]
    for path in ("/openai/mini/v1/models/topics", "/tei/mini/v1/models/nobody"):
        assert json_error(FakeModels(), "GET", path)[0] == 404


def test_openais_client_hears_of_a_missing_model_in_its_words() -> None:
    status, told = json_error(FakeModels(), "GET", "/v1/models/nobody")
    assert status == 404
    assert told["error"]["type"] == "not_found_error" and "nobody" in told["error"]["message"]


def test_tei_answers_at_its_root() -> None:
    models = FakeModels()
    labels = json_answer(models, "POST", "/tei/sentiment", {"inputs": "a film"})
    scores = fake_prediction("a film", "classification", 2).scores
    assert labels[0]["score"] == max(scores)
    for path in ("/tei/mini", "/tei/mini/invocations"):
        assert json_answer(models, "POST", path, {"inputs": "a"}) == [fake_vector("a").tolist()]
    for path in ("/tei/mini", "/tei/mini/ping", "/tei/mini/health"):
        assert send_request(models, "GET", path).body == b""


@pytest.mark.parametrize("path", ["/infinity/health", "/infinity/mini/health", "/infinity"])
def test_infinitys_health_is_json(path: str) -> None:
    assert json_answer(FakeModels(), "GET", path)["unix"] > 1e9
    assert json_answer(FakeModels(), "GET", "/health", accept="application/json")["unix"] > 1e9
    assert send_request(FakeModels(), "GET", "/health").body == b""


def test_tokens_are_told_with_their_places() -> None:
    (tokens,) = json_answer(FakeModels(), "POST", "/tokenize", {"inputs": "a film"})
    assert [each["text"] for each in tokens] == ["[CLS]", "a", "film", "[SEP]"]
    assert tokens[0] == {"id": 1, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert (tokens[2]["start"], tokens[2]["stop"]) == (2, 6)
    body = {"inputs": ["a film", "b"], "add_special_tokens": False}
    assert [len(each) for each in json_answer(FakeModels(), "POST", "/tokenize", body)] == [2, 1]
    vllm = json_answer(FakeModels(), "POST", "/tokenize", {"prompt": "a film", "model": "mini"})
    assert (vllm["count"], vllm["max_model_len"], len(vllm["tokens"])) == (4, 64, 4)


def test_tokens_are_texts_again() -> None:
    for path in ("/decode", "/tei/mini/decode"):
        assert json_answer(FakeModels(), "POST", path, {"ids": [1, 5, 2]}) == ["t5"]
        assert json_answer(FakeModels(), "POST", path, {"ids": [[5], [6, 2]]}) == ["t5", "t6"]
    whole = json_answer(
        FakeModels(), "POST", "/decode", {"ids": [1, 5], "skip_special_tokens": False}
    )
    assert whole == ["t1 t5"]
    vllm = {"model": "mini", "tokens": [1, 5, 2]}
    assert json_answer(FakeModels(), "POST", "/detokenize", vllm) == {"prompt": "t1 t5 t2"}


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/decode", {"ids": []}, 400, "no token"),
        ("/decode", {"ids": [[1], []]}, 400, "no token"),
        ("/decode", {"ids": [[1]] * 5}, 413, "at most 4"),
        ("/decode", {"ids": ["a"]}, 400, "ids"),
        ("/decode", {"ids": [1001]}, 422, "another tokenizer"),
        ("/detokenize", {"tokens": []}, 400, "empty"),
        ("/tei/mini/decode", {"ids": [1], "model": "topics"}, 400, "the path names 'mini'"),
    ],
)
def test_no_tokens_are_refused_with_the_way_out(
    path: str, body: Any, status: int, words: str
) -> None:
    found, told = json_error(FakeModels(), "POST", path, body)
    assert found == status and words in told["error"]


def test_vectors_of_tokens_are_answered_one_by_one() -> None:
    answer = json_answer(FakeModels(), "POST", "/tei/mini/embed_all", {"inputs": ["a film", "b"]})
    assert [len(of_text) for of_text in answer] == [4, 3]
    assert answer[0][1] == fake_vector("a film 1").tolist()
    status, told = json_error(FakeModels(), "POST", "/embed_all", {"inputs": "a"})
    assert status == 424 and "embedding" in told["error"]
    asked = {"inputs": "a", "dimensions": 2}
    status, told = json_error(FakeModels(), "POST", "/tei/mini/embed_all", asked)
    assert status == 400 and "dimensions" in told["error"]


def test_sparse_vectors_are_refused_by_name() -> None:
    status, told = json_error(FakeModels(), "POST", "/tei/mini/embed_sparse", {"inputs": "a"})
    assert status == 424
    assert "embed_sparse" in told["error"] and "/embed" in told["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tei/mini/embed", {"inputs": "a", "prompt_name": "query"}),
        ("/hf/mini", {"inputs": "a", "prompt_name": "query"}),
        ("/hf/mini", {"inputs": "a", "parameters": {"prompt_name": "query"}}),
        ("/invocations", {"inputs": ["a"], "model": "mini", "prompt_name": "query"}),
    ],
)
def test_a_prompt_stands_before_the_text(path: str, body: Any) -> None:
    assert json_answer(FakeModels(), "POST", path, body) == [fake_vector("search for: a").tolist()]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tei/mini/embed", {"inputs": "a", "prompt_name": "qury"}, "document, query"),
        ("/tei/mini/embed", {"inputs": [1, 2], "prompt_name": "query"}, "send texts"),
        ("/hf/sentiment", {"inputs": "a", "prompt_name": "query"}, "knows no prompts"),
        ("/tokenize", {"inputs": "a", "prompt_name": "query"}, "knows no prompts"),
        ("/invocations", {"inputs": "a", "prompt_name": "query"}, "knows no prompts"),
    ],
)
def test_a_prompt_that_there_is_not_is_refused(path: str, body: Any, words: str) -> None:
    status, told = json_error(FakeModels(), "POST", path, body)
    assert status == 400
    assert told["error"].startswith("prompt_name = ") and words in told["error"]


SPLIT = {"columns": ["id", "text"], "data": [[1, "a film"], [2, "b"]]}


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": SPLIT},
        {"dataframe_split": {"columns": ["x"], "data": [["a film"], ["b"]], "index": [0, 1]}},
        {"dataframe_records": [{"text": "a film", "id": 1}, {"text": "b", "id": 2}]},
        {"instances": ["a film", "b"]},
        {"instances": [{"text": "a film"}, {"inputs": "b"}]},
        {"inputs": [{"text": "a film", "id": 1}, {"text": "b", "id": 2}]},
        {"inputs": {"text": ["a film", "b"], "id": [1, 2]}},
    ],
)
def test_tables_of_mlflow_are_answered_as_predictions(body: Any) -> None:
    found = json_answer(FakeModels(), "POST", "/invocations", body)
    plain = json_answer(FakeModels(), "POST", "/invocations", {"inputs": ["a film", "b"]})
    assert found == {"predictions": plain}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"dataframe_split": {"columns": ["a"], "data": [["x", "y"]]}}, "row 1"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [["x", "y"]]}}, "a column `text`"),
        ({"dataframe_records": [{"text": 5}]}, "a column `text`"),
        ({"dataframe_records": []}, "empty"),
        ({"inputs": {"text": ["a"], "id": [1, 2]}}, "columns of [1, 2] rows"),
        ({"inputs": {}}, "empty"),
        ({"inputs": [{"x": 1}]}, "a column `text`"),
    ],
)
def test_tables_without_one_text_a_row_are_refused(body: Any, words: str) -> None:
    status, told = json_error(FakeModels(), "POST", "/invocations", body)
    assert status == 400 and words in told["error"]


def test_a_header_of_csv_is_no_text() -> None:
    headers = {"content_type": "text/csv; header=present"}
    plain = json_answer(FakeModels(), "POST", "/invocations", {"inputs": ["a film", "b,c"]})
    for body in (b'text\n"a film"\n"b,c"\n', b'id,text\n1,a film\n\n2,"b,c"'):
        assert json_answer(FakeModels(), "POST", "/invocations", body, **headers) == plain
    for body, words in (
        (b"a,b\n1,2\n", "a column `text`"),
        (b"id,text\n1\n", "line 2 has 1 cells, and the header 2"),
        (b"text\n", "empty"),
    ):
        status, told = json_error(FakeModels(), "POST", "/invocations", body, **headers)
        assert status == 400 and words in told["error"]


LINES = b'{"inputs": "a film"}\n"b"\n\n{"features": ["c"]}\r\n{"text": "d"}'


@pytest.mark.parametrize("kind", ["application/jsonlines", "application/x-ndjson"])
def test_json_lines_are_answered_by_lines(kind: str) -> None:
    response = send_request(
        FakeModels(), "POST", "/invocations", LINES, {"content-type": kind, "accept": "*/*"}
    )
    assert response.media_type == "application/jsonlines"
    found = [json.loads(line) for line in response.body.decode().splitlines()]
    plain = {"inputs": ["a film", "b", "c", "d"]}
    assert found == json_answer(FakeModels(), "POST", "/invocations", plain)
    headers = {"content-type": kind, "accept": "application/json"}
    whole = send_request(FakeModels(), "POST", "/invocations", LINES, headers)
    assert json.loads(whole.body) == found


def test_a_broken_line_is_named() -> None:
    headers = {"content_type": "application/jsonlines"}
    for line in (b"{", b"{}", b"5", b'"'):
        body = b'"a"\n' + line
        status, told = json_error(FakeModels(), "POST", "/invocations", body, **headers)
        assert status == 400 and "line 2" in told["error"]


def test_csv_is_answered_where_it_is_accepted() -> None:
    body = {"inputs": ["a film", "b"]}
    headers = {"accept": "text/csv"}
    response = send_request(FakeModels(), "POST", "/invocations", body, headers)
    rows = [line.split(",") for line in response.body.decode().splitlines()]
    for row, text in zip(rows, body["inputs"], strict=True):
        scores = fake_prediction(text, "classification", 2).scores
        assert float(row[1]) == max(scores) and row[0] in ("negative", "positive")
        assert len(row) == 4
    vectors = send_request(
        FakeModels(), "POST", "/invocations", {"inputs": "a", "model": "mini"}, headers
    )
    numbers = [float(cell) for cell in vectors.body.decode().split(",")]
    assert numbers == fake_vector("a").tolist()


@pytest.mark.parametrize("accept", ["image/png", "application/x-npy"])
def test_an_answer_that_there_is_not_is_refused(accept: str) -> None:
    status, told = json_error(FakeModels(), "POST", "/invocations", {"inputs": "a"}, accept=accept)
    assert status == 400
    assert accept in told["error"] and "text/csv" in told["error"]


@pytest.mark.parametrize("target", ["topics", "topics.tar.gz", "/topics.tar.gz"])
def test_the_target_model_answers(target: str) -> None:
    headers = {"x-amzn-sagemaker-target-model": target}
    found = send_request(FakeModels(), "POST", "/invocations", {"inputs": "a"}, headers)
    plain = json_answer(FakeModels(), "POST", "/tei/topics/predict", {"inputs": "a"})
    assert json.loads(found.body) == plain
    missing = {"x_amzn_sagemaker_target_model": "nobody"}
    assert json_error(FakeModels(), "POST", "/invocations", {"inputs": "a"}, **missing)[0] == 404


def test_an_option_of_another_task_is_refused() -> None:
    for path, parameters in (
        ("/hf/mini", {"top_k": 1}),
        ("/hf/sentiment", {"targets": ["a"]}),
        ("/invocations", {"normalize": True}),
    ):
        body = {"inputs": "a", "parameters": parameters}
        status, told = json_error(FakeModels(), "POST", path, body)
        assert status == 400 and next(iter(parameters)) in told["error"]


def test_torchserve_takes_versions_and_rows_as_its_clients_write_them() -> None:
    models = FakeModels()
    plain = json_answer(models, "POST", "/predictions/sentiment/1", {"data": ["a", "b"]})
    rows = [{"data": "a"}, {"body": "b"}]
    assert json_answer(models, "POST", "/predictions/sentiment/1.0", rows) == plain
    assert json_error(models, "POST", "/predictions/sentiment", [{"x": "a"}])[0] == 400


def test_the_first_version_serves_at_once_with_workers() -> None:
    models = FakeModels()
    path = "/manage/models?url=a&initial_workers=1"
    response = send_request(models, "POST", path)
    assert response.status == 202
    assert json.loads(response.body) == {"status": "Processing worker updates..."}
    assert models.managed is not None
    # A later version is loaded, and the first stays the default.
    assert models.managed.calls == [("register", "a", None), ("load", "sentiment:3")]
    models = FakeModels("topics")
    done = json_answer(models, "POST", f"{path}&synchronous=true")
    assert done["status"].endswith("registered with 1 initial workers")
    calls = [("set_default", "sentiment", "3"), ("load", "sentiment:3")]
    assert models.managed is not None and models.managed.calls[1:] == calls


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_shared_memory_is_refused_by_its_name(kind: str) -> None:
    path = f"/v2/{kind}sharedmemory"
    for method, call in (
        ("POST", "/region/a/register"),
        ("POST", "/region/a/unregister"),
        ("POST", "/unregister"),
        ("GET", "/region/a/status"),
        ("GET", "/status"),
    ):
        body = {"key": "/a"} if call.endswith("/register") else b""
        status, told = json_error(FakeModels(), method, path + call, body)
        assert (status, told["error"]) == (
            400,
            "shared memory is not offered; send tensors in the request",
        )
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1]}
    parameters = {"shared_memory_region": "a", "shared_memory_byte_size": 9}
    body = {"inputs": [tensor | {"parameters": parameters}]}
    status, told = json_error(FakeModels(), "POST", "/v2/models/sentiment/infer", body)
    assert status == 400 and "shared memory is not offered" in told["error"]


def test_requests_as_proxies_and_editors_write_them() -> None:
    with (
        serve_app(App(protocols.ALL, FakeModels())) as address,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
    ):
        body = json.dumps({"inputs": "a film"}).encode()
        plain = http.post("/predict", content=body).json()
        for coding in ("gzip", "x-gzip", "X-GZIP"):
            headers = {"content-encoding": coding}
            found = http.post("/predict", content=gzip.compress(body), headers=headers)
            assert found.json() == plain
        assert http.post("/predict/", content=body).json() == plain
        assert http.post("/predict", content=b"\xef\xbb\xbf" + body).json() == plain
        marked = b'\xef\xbb\xbf{"inputs": "a film"}\n'
        headers = {"content-type": "application/jsonlines"}
        lines = http.post("/invocations", content=marked, headers=headers)
        assert json.loads(lines.content) == plain
        assert http.get("/v2/").json()["name"] == "bertha"
