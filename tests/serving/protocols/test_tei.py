"""Text Embeddings Inference's protocol on bytes: what is read, refused and answered."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.http.messages import HTTPError
from serving.interface import Limits, Prediction, TextInput
from serving.protocols import tei
from serving.protocols.tei_bodies import TEIPredictRequest, parse_predict_request
from tests.support.fake_models import FakeModels, fake_model_info, fake_prediction, fake_vector
from tests.support.http_requests import json_answer, json_error, send_request

LIMITS = Limits(max_texts=3)
LABELS = ("negative", "positive")
GOOD = Prediction(scores=(0.25, 0.75), logits=(-1.0, 2.0))
BAD = Prediction(scores=(0.875, 0.125), logits=(3.0, 0.5))
# A busy machine is slow to draw the first text; that is no flaw of what is tested.
FUZZED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [
        ("a film", ["a film"]),
        (["a", "b"], ["a", "b"]),
        ([["a"], ["b"]], ["a", "b"]),
        (["ü\u0000\U0001f3ac"], ["ü\u0000\U0001f3ac"]),
    ],
)
def test_every_shape_of_inputs_becomes_texts(inputs: object, texts: list[str]) -> None:
    request = parse_predict_request(json.dumps({"inputs": inputs}).encode(), LIMITS)
    assert request.texts == texts
    assert request.is_single == isinstance(inputs, str)


def test_a_client_that_sends_every_key_of_the_original_is_understood() -> None:
    body = (
        b'{"inputs": "a", "raw_scores": true, "truncate": null, "truncation_direction": "Right",'
        b' "prompt_name": null}'
    )
    request = parse_predict_request(body, LIMITS)
    assert (request.raw_scores, request.truncate) == (True, None)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "malformed", "not JSON"),
        (b"inputs=a", "malformed", "not JSON"),
        (b'{"inputs": "a', "malformed", "not JSON"),
        (b'{"inputs": "\xff"}', "malformed", "UTF-8"),
        ('{"inputs": "a"}'.encode("utf-16"), "malformed", "UTF-8"),
        (b'{"inputs": "\\ud800"}', "malformed", "hex escape"),
        (b"[" * 100_000, "malformed", "recursion"),
        (b"[]", "malformed", "no JSON object"),
        (b'"a"', "malformed", "no JSON object"),
        (b"{}", "malformed", "inputs is missing"),
        (b'{"inputs": null}', "malformed", "inputs = None: expected a text, a list of texts"),
        (b'{"inputs": 1}', "malformed", "inputs = 1: expected a text, a list of texts"),
        (b'{"inputs": ["a", 1]}', "malformed", "a list of texts"),
        (b'{"inputs": [["a"], "b"]}', "malformed", "a list of texts"),
        (b'{"inputs": {"text": "a"}}', "malformed", "a list of texts"),
        (b'{"inputs": [["a", "b"]]}', "malformed", "a pair at place 1"),
        (b'{"inputs": [["a"], []]}', "malformed", "a list of 0 at place 2"),
        (b'{"inputs": ["a", "b"], "pairs": true}', "malformed", "no pairs"),
        (b'{"inputs": "a", "raw_scores": "yes"}', "malformed", "raw_scores = 'yes'"),
        (b'{"inputs": "a", "truncation_direction": "Up"}', "malformed", "'Left'"),
        (b'{"inputs": ""}', "empty", "empty"),
        (b'{"inputs": []}', "empty", "at least one"),
        (b'{"inputs": ["a", " \\n"]}', "empty", "text 2"),
        (b'{"inputs": ["a", "b", "c", "d"]}', "too-large", "4 texts.* at most 3"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(body: bytes, kind: str, words: str) -> None:
    with pytest.raises(HTTPError, match=words) as refused:
        parse_predict_request(body, LIMITS)
    assert refused.value.kind == kind


@FUZZED
@given(
    st.text(min_size=1, max_size=20)
    | st.lists(st.text(max_size=5), max_size=5)
    | st.lists(st.lists(st.text(max_size=5), max_size=2), max_size=5)
)
def test_texts_arrive_as_they_were_sent(inputs: str | list[str] | list[list[str]]) -> None:
    try:
        request = parse_predict_request(
            json.dumps({"inputs": inputs}, ensure_ascii=False).encode(), LIMITS
        )
    except HTTPError:
        return
    assert request.inputs == inputs
    assert 1 <= len(request.texts) <= 3
    assert all(text.strip() for text in request.texts)


def answered(body: bytes, *predictions: Prediction, labels: tuple[str, ...] = LABELS) -> Any:
    request = parse_predict_request(body, LIMITS)
    assert isinstance(request, TEIPredictRequest)
    model = fake_model_info("sentiment" if labels else "stars", labels=labels)
    return json.loads(tei.format_predictions(request, predictions, model))


def test_one_text_gets_its_labels_by_falling_score() -> None:
    assert answered(b'{"inputs": "a"}', GOOD) == [
        {"score": 0.75, "label": "positive"},
        {"score": 0.25, "label": "negative"},
    ]


@pytest.mark.parametrize("body", [b'{"inputs": ["a", "b"]}', b'{"inputs": [["a"], ["b"]]}'])
def test_a_list_of_texts_gets_a_list_of_answers(body: bytes) -> None:
    assert [each[0]["label"] for each in answered(body, GOOD, BAD)] == ["positive", "negative"]


def test_a_list_of_one_text_is_still_a_list() -> None:
    assert answered(b'{"inputs": ["a"]}', GOOD) == [answered(b'{"inputs": "a"}', GOOD)]


def test_raw_scores_are_the_logits() -> None:
    assert answered(b'{"inputs": "a", "raw_scores": true}', GOOD) == [
        {"score": 2.0, "label": "positive"},
        {"score": -1.0, "label": "negative"},
    ]


def test_a_regression_answers_its_value() -> None:
    value = Prediction(scores=(3.5,), logits=(3.5,))
    assert answered(b'{"inputs": "a"}', value, labels=()) == [{"score": 3.5, "label": "value"}]


def test_labels_of_equal_score_keep_their_order() -> None:
    tie = Prediction(scores=(0.5, 0.5), logits=(0.0, 0.0))
    assert [each["label"] for each in answered(b'{"inputs": "a"}', tie)] == list(LABELS)


def test_the_default_model_answers_and_another_by_its_prefix() -> None:
    models = FakeModels()
    of_default = json_answer(models, "POST", "/predict", {"inputs": "a film"})
    assert {each["label"]: each["score"] for each in of_default} == dict(
        zip(LABELS, fake_prediction("a film", "classification", 2).scores, strict=True)
    )
    (value,) = json_answer(models, "POST", "/tei/stars/predict", {"inputs": "a film"})
    assert value == {
        "label": "value",
        "score": fake_prediction("a film", "regression", 0).scores[0],
    }


def test_cutting_is_the_default_and_truncate_false_refuses() -> None:
    models = FakeModels()
    long = "word " * 100
    json_answer(models, "POST", "/predict", {"inputs": long})
    status, body = json_error(models, "POST", "/predict", {"inputs": long, "truncate": False})
    assert (status, body["error_type"]) == (413, "Validation")
    json_answer(models, "POST", "/predict", {"inputs": "short", "truncate": False})
    assert models.truncated == [True, False]


def test_vectors_are_a_list_even_for_one_text() -> None:
    models = FakeModels("mini")
    assert json_answer(models, "POST", "/embed", {"inputs": "a"}) == [fake_vector("a").tolist()]
    two = json_answer(models, "POST", "/embed", {"inputs": ["a", "b"], "normalize": True})
    assert two == [fake_vector("a").tolist(), fake_vector("b").tolist()]


def test_fewer_dimensions_are_of_length_1_again() -> None:
    models = FakeModels("mini")
    (short,) = json_answer(models, "POST", "/embed", {"inputs": "a", "dimensions": 3})
    assert len(short) == 3
    assert np.linalg.norm(short) == pytest.approx(1)
    np.testing.assert_allclose(np.cross(short, fake_vector("a")[:3]), 0, atol=1e-6)
    status, body = json_error(models, "POST", "/embed", {"inputs": "a", "dimensions": 9})
    assert (status, body["error_type"]) == (400, "Validation")
    assert "8" in body["error"]


@pytest.mark.parametrize(("inputs", "ids"), [([1, 2], [(1, 2)]), ([[1, 2], [3]], [(1, 2), (3,)])])
def test_token_ids_are_read_as_they_are(inputs: object, ids: list[tuple[int, ...]]) -> None:
    models = FakeModels("mini")
    assert len(json_answer(models, "POST", "/embed", {"inputs": inputs})) == len(ids)
    assert [text.ids for text in models.inputs if isinstance(text, TextInput)] == ids


def test_ranks_are_cosines_by_falling_score() -> None:
    texts = ["x", "a", "y"]
    ranks = json_answer(
        FakeModels("mini"),
        "POST",
        "/rerank",
        {"query": "a", "texts": texts, "return_text": True},
    )
    assert ranks[0] == {"index": 1, "score": pytest.approx(1), "text": "a"}
    assert [rank["score"] for rank in ranks] == sorted((r["score"] for r in ranks), reverse=True)
    for rank in ranks:
        cosine = float(fake_vector("a") @ fake_vector(texts[rank["index"]]))
        assert rank["score"] == pytest.approx(cosine, abs=1e-6)


def test_similarities_keep_the_order_of_the_sentences() -> None:
    inputs = {"source_sentence": "a", "sentences": ["b", "a"]}
    found = json_answer(FakeModels("mini"), "POST", "/similarity", {"inputs": inputs})
    assert found == pytest.approx([float(fake_vector("a") @ fake_vector("b")), 1], abs=1e-6)


def test_the_query_does_not_count_among_the_texts() -> None:
    models = FakeModels("mini")  # takes four texts
    ranked = json_answer(models, "POST", "/rerank", {"query": "a", "texts": list("abcd")})
    assert len(ranked) == 4
    status, body = json_error(models, "POST", "/rerank", {"query": "a", "texts": list("abcde")})
    assert status == 413
    assert "5 texts" in body["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/rerank", {"query": "a", "texts": ["b"]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
        ("/tei/mini/predict", {"inputs": "a"}),
    ],
)
def test_a_model_of_another_task_is_the_backends_error(path: str, body: object) -> None:
    status, told = json_error(FakeModels(), "POST", path, body)
    assert (status, told["error_type"]) == (424, "Backend")


def test_info_tells_what_is_served() -> None:
    info = json_answer(FakeModels(), "GET", "/info")
    assert info["model_id"] == "sentiment"
    assert info["model_dtype"] == "float32"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "negative", "1": "positive"}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (64, 4)
    embedding = json_answer(FakeModels(), "GET", "/tei/mini/info")["model_type"]
    assert embedding == {"embedding": {"pooling": "mean"}}


def test_health_is_an_empty_200_or_unhealthy() -> None:
    models = FakeModels()
    assert send_request(models, "GET", "/health").body == b""
    models.sound = False
    assert json_error(models, "GET", "/health")[1]["error_type"] == "Unhealthy"


@pytest.mark.parametrize(
    ("kind", "status", "error_type"),
    [
        ("unreadable", 422, "Tokenizer"),
        ("failed", 424, "Backend"),
        ("overloaded", 429, "Overloaded"),
        ("unready", 503, "Unhealthy"),
        ("late", 504, "Overloaded"),
        ("no-model", 404, "Validation"),
        ("internal", 500, "Internal"),
    ],
)
def test_refusals_have_the_originals_types(kind: Any, status: int, error_type: str) -> None:
    models = FakeModels()
    models.refusal = HTTPError(kind, "why")
    told = json_error(models, "POST", "/predict", {"inputs": "a"})
    assert told == (status, {"error": "why", "error_type": error_type})
