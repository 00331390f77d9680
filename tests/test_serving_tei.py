"""Text Embeddings Inference's protocol on bytes: what is read, refused and answered."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.engine import Prediction
from serving.protocols import tei

LABELS = ("negative", "positive")
GOOD = Prediction(scores=(0.25, 0.75), logits=(-1.0, 2.0))
BAD = Prediction(scores=(0.875, 0.125), logits=(3.0, 0.5))

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
# A busy machine is slow to draw the first text; that is no flaw of what is tested.
FUZZED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.sampled_from([*tei.PredictRequest.model_fields, "parameters"])


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
    request = tei.parse(json.dumps({"inputs": inputs}).encode(), max_batch=3)
    assert request.texts == texts
    assert request.single == isinstance(inputs, str)


def test_a_client_that_sends_every_key_of_the_original_is_understood() -> None:
    body = (
        b'{"inputs": "a", "raw_scores": true, "truncate": null, "truncation_direction": "Right",'
        b' "prompt_name": null}'
    )
    request = tei.parse(body, max_batch=3)
    assert (request.raw_scores, request.truncate) == (True, None)


@pytest.mark.parametrize(
    ("body", "status", "error_type", "words"),
    [
        (b"", 400, "Validation", "not JSON"),
        (b"inputs=a", 400, "Validation", "not JSON"),
        (b'{"inputs": "a', 400, "Validation", "not JSON"),
        (b'{"inputs": "\xff"}', 400, "Validation", "UTF-8"),
        ('{"inputs": "a"}'.encode("utf-16"), 400, "Validation", "UTF-8"),
        (b"[" * 100_000, 400, "Validation", "recursion"),
        (b"[]", 422, "Validation", "no JSON object"),
        (b'"a"', 422, "Validation", "no JSON object"),
        (b"{}", 422, "Validation", "inputs is missing"),
        (b'{"inputs": null}', 422, "Validation", "a list of texts"),
        (b'{"inputs": 1}', 422, "Validation", "a list of texts"),
        (b'{"inputs": ["a", 1]}', 422, "Validation", "a list of texts"),
        (b'{"inputs": [["a"], "b"]}', 422, "Validation", "a list of texts"),
        (b'{"inputs": {"text": "a"}}', 422, "Validation", "a list of texts"),
        (b'{"inputs": [["a", "b"]]}', 422, "Validation", "a pair at place 1"),
        (b'{"inputs": [["a"], []]}', 422, "Validation", "a list of 0 at place 2"),
        (b'{"inputs": ["a", "b"], "pairs": true}', 422, "Validation", "no pairs"),
        (b'{"inputs": "a", "raw_scores": "yes"}', 422, "Validation", "raw_scores"),
        (b'{"inputs": "a", "truncation_direction": "Left"}', 422, "Validation", "'Right'"),
        (b'{"inputs": ""}', 400, "Empty", "empty"),
        (b'{"inputs": []}', 400, "Empty", "at least one"),
        (b'{"inputs": ["a", " \\n"]}', 400, "Empty", "text 2"),
        (b'{"inputs": ["a", "b", "c", "d"]}', 413, "Validation", "4 texts.* at most 3"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    body: bytes, status: int, error_type: str, words: str
) -> None:
    with pytest.raises(tei.Refused, match=words) as refused:
        tei.parse(body, max_batch=3)
    assert (refused.value.status, refused.value.error_type) == (status, error_type)


@FUZZED
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    understood_or_refused(body)


@FUZZED
@given(st.dictionaries(KEYS, JSON_VALUES, max_size=4))
def test_no_json_does_more_than_be_refused(body: dict[str, object]) -> None:
    understood_or_refused(json.dumps(body).encode())


@FUZZED
@given(
    st.text(min_size=1, max_size=20)
    | st.lists(st.text(max_size=5), max_size=5)
    | st.lists(st.lists(st.text(max_size=5), max_size=2), max_size=5)
)
def test_texts_arrive_as_they_were_sent(inputs: str | list[str] | list[list[str]]) -> None:
    request = understood_or_refused(json.dumps({"inputs": inputs}, ensure_ascii=False).encode())
    if request is not None:
        assert request.inputs == inputs


def understood_or_refused(body: bytes) -> tei.PredictRequest | None:
    try:
        request = tei.parse(body, max_batch=3)
    except tei.Refused as refused:
        assert refused.status in (400, 413, 422)
        json.loads(tei.error(str(refused), refused.error_type).decode())
        return None
    assert 1 <= len(request.texts) <= 3
    assert all(text.strip() for text in request.texts)
    return request


def answered(body: bytes, *predictions: Prediction, labels: tuple[str, ...] = LABELS) -> object:
    return json.loads(tei.answer(tei.parse(body, max_batch=3), predictions, labels))


def test_one_text_gets_its_labels_by_falling_score() -> None:
    assert answered(b'{"inputs": "a"}', GOOD) == [
        {"score": 0.75, "label": "positive"},
        {"score": 0.25, "label": "negative"},
    ]


@pytest.mark.parametrize("body", [b'{"inputs": ["a", "b"]}', b'{"inputs": [["a"], ["b"]]}'])
def test_a_list_of_texts_gets_a_list_of_answers(body: bytes) -> None:
    answers = answered(body, GOOD, BAD)
    assert isinstance(answers, list)
    assert [each[0]["label"] for each in answers] == ["positive", "negative"]


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
    answer = answered(b'{"inputs": "a"}', tie)
    assert isinstance(answer, list)
    assert [each["label"] for each in answer] == list(LABELS)
