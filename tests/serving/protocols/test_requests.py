"""What a path and a body must say before a model is asked."""

import pytest

from serving.http.messages import HTTPError, Request
from serving.interface import Limits
from serving.protocols.requests import check_texts, decode_utf8, requested_model

LIMITS = Limits(max_texts=3)


def asked(**path_params: str) -> Request:
    return Request("GET", "/", path_params, {}, {}, b"")


@pytest.mark.parametrize(
    ("path_params", "expected"),
    [
        ({}, None),
        ({"model": "sentiment"}, "sentiment"),
        ({"model": "sentiment@best"}, "sentiment@best"),
        ({"model": "sentiment", "version": "3"}, "sentiment:3"),
    ],
)
def test_a_path_names_a_model(path_params: dict[str, str], expected: str | None) -> None:
    assert requested_model(asked(**path_params)) == expected


@pytest.mark.parametrize("model", ["sentiment:2", "sentiment@best"])
def test_a_version_that_is_named_twice_is_refused(model: str) -> None:
    with pytest.raises(HTTPError) as refused:
        requested_model(asked(model=model, version="3"))
    assert refused.value.kind == "no-model"
    assert refused.value.message == (
        f"'{model}' and version '3' name a version twice; give the bare name"
    )


def test_texts_are_given_back_up_to_the_limit() -> None:
    assert check_texts(["a", " b ", "c"], LIMITS, "data") == ["a", " b ", "c"]


@pytest.mark.parametrize(
    ("texts", "kind", "message"),
    [
        ([], "empty", "data is empty; give at least one text"),
        (["a", ""], "empty", "text 2 of data is empty; leave it out"),
        (["\n\t ", "a"], "empty", "text 1 of data is empty; leave it out"),
        (
            ["a"] * 4,
            "too-large",
            "data holds 4 texts, but a request holds at most 3; send several requests",
        ),
        ([""] * 4, "too-large", "data holds 4 texts"),
    ],
)
def test_texts_that_cannot_be_answered_are_refused_by_their_key(
    texts: list[str], kind: str, message: str
) -> None:
    with pytest.raises(HTTPError) as refused:
        check_texts(texts, LIMITS, "data")
    assert refused.value.kind == kind
    assert refused.value.message.startswith(message)


def test_bytes_that_are_no_text_are_told_by_the_first_of_them() -> None:
    assert decode_utf8("ü".encode(), "the body") == "ü"
    with pytest.raises(HTTPError) as refused:
        decode_utf8(b"ab\x0a\xff", "the body")
    assert refused.value.kind == "malformed"
    assert refused.value.message == "the body is not UTF-8: byte 3 is 0xff"
