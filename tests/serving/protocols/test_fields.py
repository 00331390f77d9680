"""No option is ignored silently: each field of each protocol is sent, and does what its table says.

One that is done is read, so a value of another kind is refused by its name; OPTIONS and LENGTHS are
those that change the answer or what the model reads.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serving import protocols
from serving.http.asgi import App
from serving.protocols.fields import BODIES, list_fields
from serving.protocols.hf import MEANINGLESS_HEADERS as HUB_HEADERS
from serving.protocols.sagemaker.invocations import MEANINGLESS_HEADERS
from serving.protocols.torchserve_management import MEANINGLESS_QUERY
from tests.support.fake_models import FakeModels
from tests.support.http_requests import json_answer, send_request
from tests.support.servers import serve_app

TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a film"]}
TENSOR_REQUEST = {
    "inputs": [TENSOR | {"parameters": {}}],
    "outputs": [{"name": "probabilities", "parameters": {}}],
    "parameters": {},
}
# A call for each title of the table, and its body.
CALLS: dict[str, tuple[str, Any]] = {
    "Text Embeddings Inference: /predict": ("/predict", {"inputs": "a film"}),
    "Text Embeddings Inference: /embed": ("/tei/mini/embed", {"inputs": "a film"}),
    "Text Embeddings Inference: /rerank": (
        "/tei/mini/rerank",
        {"query": "a", "texts": ["b", "c"]},
    ),
    "Text Embeddings Inference: /similarity": (
        "/tei/mini/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {}},
    ),
    "Text Embeddings Inference and vLLM: /tokenize": ("/tokenize", {"inputs": "a film"}),
    "Text Embeddings Inference: /decode": ("/decode", {"ids": [[1, 2], [3]]}),
    "vLLM: /detokenize": ("/detokenize", {"tokens": [1, 2]}),
    "OpenAI, vLLM, infinity, Voyage, Jina: /v1/embeddings": (
        "/v1/embeddings",
        {"model": "mini", "input": "a film"},
    ),
    "vLLM, infinity: /classify": ("/classify", {"model": "sentiment", "input": "a film"}),
    "Cohere, Jina, Voyage, infinity, vLLM: /v1/rerank": (
        "/v1/rerank",
        {"model": "mini", "query": "a", "documents": ["b", "c"]},
    ),
    "Cohere: /v2/embed": ("/v2/embed", {"model": "mini", "texts": ["a film"]}),
    "Cohere: /v1/tokenize": ("/v1/tokenize", {"model": "mini", "text": "a film"}),
    "Cohere: /v1/detokenize": ("/v1/detokenize", {"model": "mini", "tokens": [5, 6]}),
    "vLLM: /v1/score": ("/v1/score", {"model": "mini", "text_1": "a", "text_2": "b"}),
    "Hugging Face: /hf/{model}": ("/hf/sentiment", {"inputs": "a film", "parameters": {}}),
    "SageMaker, MLflow: /invocations": (
        "/invocations",
        {"dataframe_split": {"columns": ["text"], "data": [["a film"]]}, "parameters": {}},
    ),
    "KServe V1: /v1/models/{model}:predict": (
        "/v1/models/sentiment:predict",
        {"instances": ["a film"]},
    ),
    "KServe V2: /v2/models/{model}/infer": ("/v2/models/sentiment/infer", TENSOR_REQUEST),
    "KServe V2: /v2/repository/index": ("/v2/repository/index", {}),
    "KServe V2: /v2/repository/models/{model}/load": (
        "/v2/repository/models/mini/load",
        {"parameters": {}},
    ),
    "Bertha: /explain": ("/explain", {"inputs": "a film"}),
    "Bertha: /feedback": ("/feedback", {"text": "a film", "label": "positive"}),
    "TorchServe: /predictions/{model}": ("/predictions/sentiment", {"data": "a film"}),
}
FIELDS = [
    pytest.param(fields, name, id=f"{fields.title}-{fields.place}-{name}")
    for fields in BODIES
    for name, what, _ in list_fields(fields.body)
    if what != "done" and "JSON Lines" not in fields.place
]


def call_with(title: str, place: str, name: str, value: Any) -> tuple[str, Any]:
    """The path and body of a call in which one field is set."""
    path, body = CALLS[title]
    body = json.loads(json.dumps(body))
    holder = body
    for part in place.replace("]", "").replace("[", ".").split(".") if place else ():
        holder = holder[int(part) if part.isdecimal() else part]
    holder[name] = value
    return path, body


def without_ids(answer: bytes) -> Any:
    parsed = json.loads(answer) if answer else None
    if isinstance(parsed, dict):
        return {key: each for key, each in parsed.items() if key not in ("id", "created")}
    return parsed


def message_of(body: bytes) -> str:
    parsed = json.loads(body)
    error = parsed.get("error", parsed)
    return str(error if isinstance(error, str) else error["message"])


def test_every_title_has_a_call() -> None:
    assert {fields.title for fields in BODIES} == set(CALLS)


@pytest.mark.parametrize("fields", BODIES, ids=lambda each: f"{each.title} {each.place}")
def test_every_field_says_what_is_done_with_it(fields: Any) -> None:
    rows = list(list_fields(fields.body))
    assert all(why for _, _, why in rows), [name for name, _, why in rows if not why]
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names)), "a field stands in two tables"


@pytest.mark.parametrize(("fields", "name"), FIELDS)
def test_a_field_is_refused_by_name_or_changes_nothing(fields: Any, name: str) -> None:
    title, place = fields.title, fields.place
    path, plain = CALLS[title]
    unchanged = send_request(FakeModels(), "POST", path, plain)
    assert unchanged.status == 200, unchanged.body
    found = send_request(FakeModels(), "POST", *call_with(title, place, name, "x1"))
    if name in fields.body.refused:
        assert found.status == 400
        assert f"{name} = 'x1': {fields.body.refused[name]}" in message_of(found.body)
        neutral = send_request(FakeModels(), "POST", *call_with(title, place, name, None))
        assert without_ids(neutral.body) == without_ids(unchanged.body)
    else:
        assert without_ids(found.body) == without_ids(unchanged.body)


def done_fields() -> Iterator[Any]:
    for fields in BODIES:
        for name in fields.body.model_fields:
            if "JSON Lines" not in fields.place:
                yield pytest.param(fields, name, id=f"{fields.title}-{fields.place}-{name}")


# Whatever has a value of its own kind is no mistake there.
ANY_VALUE = {"candidate_labels", "data"}


@pytest.mark.parametrize(("fields", "name"), [*done_fields()])
def test_a_field_that_is_done_is_read(fields: Any, name: str) -> None:
    """A value of the wrong kind is refused with the name of the field: somebody reads it."""
    wrong: Any = 7 if name == "parameters" else {"no": {"such": "value"}}
    path, body = call_with(fields.title, fields.place, name, wrong)
    found = send_request(FakeModels(), "POST", path, body)
    assert found.status >= 400, (name, found.body)
    if name not in ANY_VALUE:
        assert name in found.body.decode()


OPTIONS = [
    ("/predict", {"inputs": "a film"}, {"raw_scores": True}),
    ("/predict", {"inputs": "a film"}, {"model": "topics"}),
    ("/tei/mini/embed", {"inputs": "a film"}, {"dimensions": 2}),
    ("/tei/mini/rerank", {"query": "a", "texts": ["b"]}, {"return_text": True}),
    ("/tei/mini/embed", {"inputs": "a film"}, {"prompt_name": "query"}),
    ("/tei/mini/embed_all", {"inputs": "a film"}, {"prompt_name": "query"}),
    ("/tei/mini/tokenize", {"inputs": "a film"}, {"prompt_name": "query"}),
    (
        "/tei/mini/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        {"parameters": {"prompt_name": "query"}},
    ),
    ("/hf/mini", {"inputs": "a"}, {"prompt_name": "query"}),
    ("/hf/mini", {"inputs": "a"}, {"parameters": {"prompt_name": "query"}}),
    (
        "/hf/mini",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        {"prompt_name": "query"},
    ),
    ("/invocations", {"inputs": "a", "model": "mini"}, {"prompt_name": "query"}),
    ("/invocations", {"inputs": "a", "model": "mini"}, {"parameters": {"prompt_name": "query"}}),
    ("/decode", {"ids": [1, 5]}, {"skip_special_tokens": False}),
    ("/tokenize", {"inputs": "a film"}, {"add_special_tokens": False}),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"dimensions": 2}),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"encoding_format": "base64"}),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"embedding_type": "base64"}),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"output_dimension": 2}),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"input_type": "query"}),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"task": "retrieval.query"}),
    ("/v2/embed", {"model": "mini", "texts": ["a"]}, {"input_type": "search_query"}),
    ("/v2/embed", {"model": "mini", "texts": ["a"]}, {"output_dimension": 2}),
    ("/v2/embed", {"model": "mini", "texts": ["a"]}, {"embedding_types": ["base64"]}),
    ("/v1/rerank", {"model": "mini", "query": "a", "documents": ["b", "c"]}, {"top_k": 1}),
    ("/classify", {"model": "topics", "input": "a"}, {"use_activation": False}),
    ("/classify", {"model": "topics", "input": "a"}, {"activation": False}),
    ("/classify", {"model": "topics", "input": "a"}, {"softmax": False}),
    ("/infinity/classify", {"model": "topics", "input": "a"}, {"raw_scores": True}),
    ("/v1/rerank", {"model": "mini", "query": "a", "documents": ["b", "c"]}, {"top_n": 1}),
    (
        "/v1/rerank",
        {"model": "mini", "query": "a", "documents": ["b", "c"]},
        {"return_documents": True},
    ),
    ("/hf/sentiment", {"inputs": "a"}, {"parameters": {"top_k": 1}}),
    ("/hf/sentiment", {"inputs": "a"}, {"parameters": {"function_to_apply": "none"}}),
    ("/invocations", {"inputs": "a"}, {"parameters": {"top_k": 1}}),
    ("/invocations", {"inputs": "a"}, {"parameters": {"function_to_apply": "sigmoid"}}),
    ("/invocations", {"inputs": "a"}, {"raw_scores": True}),
    ("/invocations", {"inputs": "a"}, {"model": "topics"}),
    ("/v2/models/topics/infer", {"inputs": [TENSOR]}, {"parameters": {"top_k": 1}}),
]


@pytest.mark.parametrize(("path", "body", "option"), OPTIONS)
def test_an_option_changes_the_answer(path: str, body: Any, option: Any) -> None:
    plain = json_answer(FakeModels(), "POST", path, body)
    assert json_answer(FakeModels(), "POST", path, body | option) != plain


LENGTHS = [
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"truncate": "START"}, None, "left"),
    ("/v2/embed", {"model": "mini", "texts": ["a"]}, {"truncate": "START"}, None, "left"),
    ("/v2/embed", {"model": "mini", "texts": ["a"]}, {"max_tokens": 5}, 5, None),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"truncate_prompt_tokens": 5}, 5, None),
    ("/v1/embeddings", {"model": "mini", "input": "a"}, {"truncation_side": "left"}, None, "left"),
    ("/classify", {"input": "a"}, {"truncate_prompt_tokens": 5}, 5, None),
    (
        "/v1/rerank",
        {"model": "mini", "query": "a", "documents": ["b"]},
        {"max_tokens_per_doc": 7, "truncate_prompt_tokens": 5},
        5,
        None,
    ),
    (
        "/v1/score",
        {"model": "mini", "text_1": "a", "text_2": "b"},
        {"truncation_side": "left"},
        None,
        "left",
    ),
    ("/predict", {"inputs": "a"}, {"truncation_direction": "Left"}, None, "left"),
    ("/tei/mini/embed", {"inputs": "a"}, {"truncation_direction": "left"}, None, "left"),
    (
        "/tei/mini/rerank",
        {"query": "a", "texts": ["b"]},
        {"truncation_direction": "Left"},
        None,
        "left",
    ),
    (
        "/tei/mini/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        {"parameters": {"truncation_direction": "Left"}},
        None,
        "left",
    ),
    ("/hf/sentiment", {"inputs": "a"}, {"truncation_direction": "Left"}, None, "left"),
    ("/hf/sentiment", {"inputs": "a"}, {"parameters": {"max_length": 9}}, 9, None),
    ("/invocations", {"inputs": "a"}, {"parameters": {"max_length": 9}}, 9, None),
    ("/invocations", {"inputs": "a"}, {"truncation_direction": "Left"}, None, "left"),
]


@pytest.mark.parametrize(("path", "body", "option", "max_tokens", "side"), LENGTHS)
def test_an_option_of_reading_reaches_the_model(
    path: str, body: Any, option: Any, max_tokens: int | None, side: str | None
) -> None:
    models = FakeModels()
    json_answer(models, "POST", path, body | option)
    for text in models.inputs:
        assert (text.max_tokens, text.truncation_side) == (max_tokens, side)
    json_answer(models, "POST", path, body)
    assert {type(text) for text in models.inputs} == {str}


@pytest.mark.parametrize(
    ("path", "header"),
    [
        *(("/invocations", header) for header in MEANINGLESS_HEADERS),
        *(("/hf/sentiment", header) for header in HUB_HEADERS),
    ],
)
def test_a_header_without_effect_changes_nothing(path: str, header: str) -> None:
    body = {"inputs": "a film"}
    plain = send_request(FakeModels(), "POST", path, body)
    assert send_request(FakeModels(), "POST", path, body, {header: "x"}) == plain


@pytest.mark.parametrize("name", MEANINGLESS_QUERY)
def test_a_query_without_effect_changes_nothing(name: str) -> None:
    plain = send_request(FakeModels(), "POST", "/manage/models?url=a")
    assert send_request(FakeModels(), "POST", f"/manage/models?url=a&{name}=7") == plain


def test_the_model_of_a_tei_body_is_not_overruled() -> None:
    body = {"inputs": "a film", "model": "topics"}
    named = json_answer(FakeModels(), "POST", "/predict", body)
    assert named == json_answer(FakeModels(), "POST", "/tei/topics/predict", {"inputs": "a film"})
    refused = send_request(FakeModels(), "POST", "/tei/sentiment/predict", body)
    assert refused.status == 400
    assert "model = 'topics', but the path names 'sentiment'" in refused.body.decode()


@pytest.mark.parametrize(
    ("accept", "ignored"),
    [
        ("text/csv", "accept"),
        ("image/*, text/csv;q=0.5", "accept"),
        ("application/json", None),
        ("text/html, application/*;q=0.9", None),
        ("*/*", None),
    ],
)
def test_a_media_type_that_is_not_answered_is_named(accept: str, ignored: str | None) -> None:
    with (
        serve_app(App(protocols.ALL, FakeModels())) as address,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
    ):
        answer = http.post("/predict", json={"inputs": "a"}, headers={"accept": accept})
        assert answer.status_code == 200
        assert answer.headers.get("x-bertha-ignored") == ignored


def test_a_key_that_nobody_knows_is_named_in_a_header() -> None:
    with (
        serve_app(App(protocols.ALL, FakeModels())) as address,
        httpx.Client(base_url=f"http://{address}", trust_env=False) as http,
    ):
        body: dict[str, Any] = {"inputs": "a film", "truncat": True, "a\r\nb": 1, "top-k": 2}
        answer = http.post("/predict", json=body)
        assert answer.status_code == 200
        assert answer.headers["x-bertha-ignored"] == "top-k,truncat"
        nested = http.post("/hf/sentiment", json={"inputs": "a", "parameters": {"topk": 1}})
        assert nested.headers["x-bertha-ignored"] == "topk"
        assert "x-bertha-ignored" not in http.post("/predict", json={"inputs": "a"}).headers
        many = http.post("/predict", json={"inputs": "a"} | {f"k{n:03}": n for n in range(5000)})
        assert len(many.headers["x-bertha-ignored"]) < 200
