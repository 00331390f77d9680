"""JSON of a known shape is that, whatever its content type says, on every route with a body."""

import re
from typing import Any

import pytest

from serving import protocols
from tests.support.fake_models import FakeModels
from tests.support.http_requests import json_answer, json_error

FORM = "application/x-www-form-urlencoded"  # what `curl -d` says of whatever it sends
TYPES = ("", FORM, "text/plain", "application/octet-stream", "text/csv", "multipart/form-data")
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a film"]}
BODIES: dict[str, Any] = {
    "/predict": {"inputs": "a film"},
    "/tei/sentiment/predict": {"inputs": ["a film"]},
    "/tei/mini/embed": {"inputs": "a film"},
    "/tei/mini/rerank": {"query": "a", "texts": ["a film", "b"]},
    "/tei/mini/similarity": {"inputs": {"source_sentence": "a", "sentences": ["a film"]}},
    "/": {"inputs": "a film"},
    "/hf/sentiment": {"inputs": ["a film"]},
    "/v2/models/sentiment/infer": {"inputs": [TENSOR]},
    "/v2/models/sentiment/versions/1/infer": {"inputs": [TENSOR]},
    "/v2/repository/index": {"ready": True},
    "/v1/embeddings": {"model": "mini", "input": "a film"},
    "/embeddings": {"model": "mini", "input": "a film"},
    "/classify": {"model": "sentiment", "input": "a film"},
    "/v1/classify": {"model": "sentiment", "input": "a film"},
    "/infinity/classify": {"model": "sentiment", "input": "a film"},
    "/v1/models/sentiment:predict": {"instances": ["a film"]},
    "/v1/models/sentiment:explain": {"instances": ["a film"]},
    "/predictions/sentiment": {"data": "a film"},
    "/predictions/sentiment/1": {"body": ["a film", "b"]},
    "/explanations/sentiment": {"data": "a film"},
    "/explanations/sentiment/1": {"data": ["a film"], "target": "negative"},
    "/explain": {"inputs": "a film"},
    "/explain/sentiment": {"inputs": ["a film"]},
    "/explain/sentiment/1": {"inputs": "a film", "label": "negative"},
    "/feedback": {"text": "a film", "label": "negative"},
    "/invocations": {"inputs": "a film"},
    "/tei/sentiment": {"inputs": "a film"},
    "/tei/sentiment/invocations": {"inputs": "a film"},
    "/tei/sentiment/tokenize": {"inputs": "a film"},
    "/tei/sentiment/decode": {"ids": [5, 6]},
    "/tei/mini/embed_all": {"inputs": "a film"},
    "/detokenize": {"tokens": [5, 6]},
    "/v1/rerank": {"model": "mini", "query": "a", "documents": ["a film", "b"]},
    "/v2/rerank": {"model": "mini", "query": "a", "documents": ["a film", "b"]},
    "/infinity/rerank": {"model": "mini", "query": "a", "documents": ["a film", "b"]},
    "/v1/score": {"model": "mini", "text_1": "a", "text_2": ["a film", "b"]},
    "/v1/embed": {"model": "mini", "texts": ["a film"]},
    "/v2/embed": {"model": "mini", "texts": ["a film"]},
    "/v1/tokenize": {"model": "mini", "text": "a film"},
    "/v1/detokenize": {"model": "mini", "tokens": [5, 6]},
    "/endpoints/sentiment/invocations": {"inputs": "a film"},
    "/openai/deployments/mini/embeddings": {"model": "ada", "input": "a film"},
}
REFUSED = {"/tei/x/embed_sparse", "/embed_sparse"}
# The same handlers stand below several prefixes, with the version of the API and without it.
_TEI = "/tei/x"
_PREFIX = re.compile("^(/tei/x|/infinity/x|/openai/x|/infinity|/openai)")


def without_clock(answer: Any) -> Any:
    """Return an answer without what differs from request to request."""
    if isinstance(answer, dict):
        return {key: each for key, each in answer.items() if key not in ("id", "created")}
    return answer


def test_the_table_holds_every_route_that_reads_a_body() -> None:
    routes = {
        route.path.replace("{model}", "x").replace("{version}", "1")
        for protocol in protocols.ALL
        for route in protocol.routes
        if route.method == "POST" and route.body_schema is not None
    } - REFUSED
    named = {path.replace("sentiment", "x").replace("mini", "x") for path in BODIES}
    for path in routes - named:
        bare = _PREFIX.sub("", path)
        assert bare == "" or bare in named or f"/v1{bare}" in named or _TEI + bare in named, path
    assert named <= routes


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("path", BODIES)
def test_what_a_header_says_changes_no_answer(path: str, content_type: str) -> None:
    wanted = json_answer(FakeModels(), "POST", path, BODIES[path], content_type="application/json")
    found = json_answer(FakeModels(), "POST", path, BODIES[path], content_type=content_type)
    assert without_clock(found) == without_clock(wanted)


@pytest.mark.parametrize("content_type", TYPES)
@pytest.mark.parametrize("path", ["/predictions/sentiment", "/explanations/sentiment"])
def test_a_text_a_list_and_their_envelopes_are_one_question(path: str, content_type: str) -> None:
    one = json_answer(FakeModels(), "POST", path, {"data": "a warm film"})
    several = json_answer(FakeModels(), "POST", path, {"data": ["a warm film"]})
    for body, wanted in (
        (b'"a warm film"', one),
        (b'\xef\xbb\xbf {"data": "a warm film"}\n', one),
        (b'["a warm film"]', several),
        (b'{"body": ["a warm film"]}', several),
    ):
        assert json_answer(FakeModels(), "POST", path, body, content_type=content_type) == wanted


@pytest.mark.parametrize("content_type", ["", FORM, "application/octet-stream"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"inputs": "a film"}', "has neither data nor body: expected a text"),
        (b'{"data": 5}', "data"),
        (b"{'data': 'a film'}", "not JSON"),
        (b"[1, 2]", "expected a text"),
        (b"{}", "neither data nor body"),
    ],
)
def test_json_of_no_known_shape_is_not_classified_as_a_text(
    body: bytes, words: str, content_type: str
) -> None:
    for path in ("/predictions/sentiment", "/explanations/sentiment"):
        status, told = json_error(FakeModels(), "POST", path, body, content_type=content_type)
        assert status == 400 and words in told["message"]
        assert told["message"].endswith("read as a text, send it as text/plain")


@pytest.mark.parametrize(
    "text", ['{"inputs": "a film"}', "{a film}", "[1, 2]", "[sic] a film", "5"]
)
def test_as_plain_text_it_is_a_text(text: str) -> None:
    wanted = json_answer(FakeModels(), "POST", "/predictions/sentiment", {"data": text})
    for kind in ("text/plain", "text/plain; charset=utf-8"):
        path = "/predictions/sentiment"
        found = json_answer(FakeModels(), "POST", path, text.encode(), content_type=kind)
        assert found == wanted


def test_a_form_stays_a_form() -> None:
    wanted = json_answer(FakeModels(), "POST", "/explanations/sentiment", {"data": "a {film}"})
    for body in (b"data=a+%7Bfilm%7D", b"data=%7B%22data%22%3A+%22a+%7Bfilm%7D%22%7D"):
        path = "/explanations/sentiment"
        assert json_answer(FakeModels(), "POST", path, body, content_type=FORM) == wanted
    target = b'data={"data": "a film", "target": "negative"}'
    told = json_answer(FakeModels(), "POST", "/explanations/sentiment", target, content_type=FORM)
    assert told["label"] == "negative"


def test_a_plain_text_at_sagemaker_stays_one() -> None:
    wanted = json_answer(FakeModels(), "POST", "/invocations", {"inputs": '{"a": 1}'})
    found = json_answer(
        FakeModels(), "POST", "/invocations", b'{"a": 1}', content_type="text/plain"
    )
    assert found == wanted
