"""Rerank as Cohere, Jina, infinity and vLLM have it, and vLLM's score of pairs."""

from typing import Any

import numpy as np
import pytest

from tests.support.fake_models import FakeModels, fake_vector
from tests.support.http_requests import json_answer, json_error

DOCUMENTS = ["a warm film", "a dull plot", "music"]
PATHS = ["/rerank", "/v1/rerank", "/v2/rerank"]
PREFIXED = [
    f"{prefix}{path}"
    for prefix in ("/openai", "/openai/mini", "/infinity", "/infinity/mini", "/tei/mini")
    for path in PATHS
]


def cosines() -> list[float]:
    query = fake_vector("film")
    return [float(query @ fake_vector(text)) for text in DOCUMENTS]


def ask(path: str, **options: Any) -> Any:
    body = {"model": "mini", "query": "film", "documents": DOCUMENTS, **options}
    return json_answer(FakeModels(), "POST", path, body)


@pytest.mark.parametrize("path", [*PATHS, *PREFIXED])
def test_documents_are_ranked_at_every_address(path: str) -> None:
    found = ask(path)
    scores = cosines()
    order = sorted(range(3), key=lambda index: -scores[index])
    assert [each["index"] for each in found["results"]] == order
    ranked = [each["relevance_score"] for each in found["results"]]
    assert ranked == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    assert found["model"] == "mini" and found["usage"]["total_tokens"] > 0
    assert found["meta"]["billed_units"] == {"search_units": 1}
    assert all("document" not in each for each in found["results"])


@pytest.mark.parametrize(("top_n", "number"), [(1, 1), (2, 2), (99, 3), (0, 3), (None, 3)])
def test_as_many_are_returned_as_are_asked_for(top_n: int | None, number: int) -> None:
    results = ask("/v2/rerank", top_n=top_n)["results"]
    assert len(results) == number
    assert results[0]["relevance_score"] == pytest.approx(max(cosines()), abs=1e-6)


def test_documents_come_back_in_each_clients_shape() -> None:
    best = DOCUMENTS[int(np.argmax(cosines()))]
    assert ask("/v1/rerank", return_documents=True)["results"][0]["document"] == {"text": best}
    assert ask("/infinity/rerank", return_documents=True)["results"][0]["document"] == best


def test_documents_may_be_objects() -> None:
    found = ask("/v1/rerank", documents=[{"text": text} for text in DOCUMENTS])
    assert found["results"] == ask("/v1/rerank")["results"]


def test_texts_at_rerank_are_still_teis() -> None:
    body = {"model": "mini", "query": "film", "texts": DOCUMENTS}
    found = json_answer(FakeModels(), "POST", "/rerank", body)
    assert [set(each) for each in found] == [{"index", "score"}] * 3


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"query": "a", "documents": []}, 400, "nothing to compare"),
        ({"query": "a", "documents": [1]}, 400, "a list of texts"),
        ({"query": "a", "documents": [{"title": "x"}]}, 400, "a list of texts"),
        ({"documents": ["a"]}, 400, "query is missing"),
        ({"query": "a", "documents": ["a"], "top_n": -1}, 400, "top_n"),
        ({"query": "a", "documents": ["a"], "rank_fields": ["title"]}, 400, "rank_fields"),
        ({"query": "a", "documents": ["a"], "model": "sentiment"}, 400, "classification"),
        ({"query": "a", "documents": ["a"], "model": "nobody"}, 404, "nobody"),
    ],
)
def test_what_is_wrong_is_told_to_every_client(body: Any, status: int, words: str) -> None:
    found, told = json_error(FakeModels(), "POST", "/v2/rerank", {"model": "mini"} | body)
    assert found == status
    assert words in told["message"]
    assert told["message"] == told["detail"] == told["error"]["message"]


@pytest.mark.parametrize("path", ["/score", "/v1/score", "/openai/mini/v1/score"])
def test_one_text_is_scored_with_each_of_others(path: str) -> None:
    body = {"model": "mini", "text_1": "film", "text_2": DOCUMENTS}
    found = json_answer(FakeModels(), "POST", path, body)
    scores = [each["score"] for each in found["data"]]
    assert scores == pytest.approx(cosines(), abs=1e-6)
    assert [each["index"] for each in found["data"]] == [0, 1, 2]
    assert found["object"] == "list"


def test_pairs_are_scored_one_by_one_and_a_text_counts_once() -> None:
    body = {"model": "mini", "queries": ["film"] * 3, "documents": DOCUMENTS}
    models = FakeModels()
    data = json_answer(models, "POST", "/v1/score", body)["data"]
    assert [each["score"] for each in data] == pytest.approx(cosines(), abs=1e-6)
    assert list(models.inputs) == ["film", *DOCUMENTS]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text_1": "a"}, "text_1 and text_2 are missing"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "2 and 3 texts"),
        ({"text_1": 1, "text_2": "b"}, "text_1"),
    ],
)
def test_sides_that_do_not_match_are_refused(body: Any, words: str) -> None:
    status, told = json_error(FakeModels(), "POST", "/v1/score", {"model": "mini"} | body)
    assert status == 400 and words in told["message"]
