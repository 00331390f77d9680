"""SageMaker's requests in each media type, and the options that JSON has."""

import csv
from typing import Any

import pytest

from serving.http.messages import HTTPError, Request
from serving.interface import Limits
from serving.protocols.sagemaker.bodies import SageMakerRequest, parse_request
from tests.support.fake_models import FakeModels, fake_prediction
from tests.support.http_requests import json_answer, json_error

LOGITS = fake_prediction("a film", "classification", 2).logits


def parse(body: bytes, content_type: str | None = None) -> SageMakerRequest:
    headers = {} if content_type is None else {"content-type": content_type}
    return parse_request(Request("POST", "/invocations", {}, {}, headers, body))


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"a, b\n", "text/plain; charset=utf-8", SageMakerRequest(["a, b\n"], single=True)),
        (b'{"inputs": "a"}', None, SageMakerRequest(["a"], single=True)),
        (b'{"inputs": "a"}', "application/x-www-form-urlencoded", SageMakerRequest(["a"], True)),
        (b'{"inputs": ["a"]}', "Application/JSON", SageMakerRequest(["a"])),
        (b'{"instances": ["a"], "inputs": "b"}', "", SageMakerRequest(["a"], key="predictions")),
        (
            b'"two\r\nlines"\r\n\r\n"c ""d"""',
            "text/csv",
            SageMakerRequest(["two\r\nlines", 'c "d"']),
        ),
        (
            b'{"inputs": "a", "raw_scores": true, "truncate": false}',
            None,
            SageMakerRequest(["a"], True, None, raw_scores=True, truncate=False),
        ),
        (
            b'{"instances": ["a"], "raw_scores": true, "truncate": null}',
            None,
            SageMakerRequest(["a"], False, "predictions", raw_scores=True, truncate=True),
        ),
    ],
)
def test_a_request_is_read_by_its_media_type(
    body: bytes, content_type: str | None, expected: SageMakerRequest
) -> None:
    assert parse(body, content_type) == expected


def test_a_field_of_csv_may_be_as_long_as_a_body() -> None:
    body = b"a" * Limits().max_body_bytes
    assert parse(body, "text/csv") == SageMakerRequest([body.decode()])


def test_a_body_of_csv_never_narrows_the_limit_of_others() -> None:
    before = csv.field_size_limit()
    parse(b"a\nb", "text/csv")
    assert csv.field_size_limit() >= before


def test_raw_scores_are_logits_by_falling_score() -> None:
    found = json_answer(
        FakeModels(), "POST", "/invocations", {"inputs": "a film", "raw_scores": True}
    )
    assert [each["score"] for each in found] == sorted(LOGITS, reverse=True)
    best = ("negative", "positive")[LOGITS.index(max(LOGITS))]
    assert found[0] == {"score": max(LOGITS), "label": best}


@pytest.mark.parametrize(("given", "cut"), [(True, True), (None, True), (False, False)])
def test_texts_are_cut_unless_the_request_forbids_it(given: bool | None, cut: bool) -> None:
    models = FakeModels()
    json_answer(models, "POST", "/invocations", {"inputs": ["a"], "truncate": given})
    assert models.truncated == [cut]


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"", "application/x-npy", "'application/x-npy': send application/json, "),
        (b"a\nb,c\n", "text/csv", "line 2 has 2 columns: expected one text, in quotes"),
        (b'"a" b', "text/csv", "line 1: the body is not CSV"),
        (b'"a\nb"\r\n\r\n"c"\rb,"d\n",e', "text/csv", "line 5 has 3 columns"),
        (b'a\n"b\nc"\n"d', "text/csv", "line 4: the body is not CSV"),
        (b"\xff", "text/plain", "the body is not UTF-8: byte 0 is 0xff"),
        (b'{"raw_scores": 1}', None, "raw_scores = 1"),
        (b'{"inputs": null}', None, "inputs is missing; expected a text or a list of texts"),
    ],
)
def test_a_body_that_cannot_be_read_says_what_can(
    body: bytes, content_type: str | None, words: str
) -> None:
    with pytest.raises(HTTPError) as refused:
        parse(body, content_type)
    assert refused.value.kind == "malformed"
    assert words in refused.value.message


@pytest.mark.parametrize(("body", "status"), [({"inputs": []}, 400), ({"inputs": ["a"] * 5}, 413)])
def test_the_texts_of_a_request_are_limited(body: dict[str, Any], status: int) -> None:
    found, told = json_error(FakeModels(), "POST", "/invocations", body)
    assert (found, told["error"].startswith("the request ")) == (status, True)
