"""A byte order mark before a body, as editors and spreadsheets write it, is no part of the body."""

import json
from codecs import BOM_UTF8
from typing import Any

import pytest

from serving.http.messages import Response
from tests.serving.protocols.test_fields import CALLS
from tests.support.fake_models import FakeModels
from tests.support.http_requests import send_request

TEXT = b"a film"
PLAIN: dict[str, tuple[str, bytes, str]] = {
    "TorchServe, a text": ("/predictions/sentiment", TEXT, "text/plain"),
    "TorchServe, whatever": ("/predictions/sentiment", TEXT, "application/octet-stream"),
    "TorchServe, a string": ("/predictions/sentiment", b'"a film"', "application/json"),
    "SageMaker, a text": ("/invocations", TEXT, "text/plain"),
    "SageMaker, a table": ("/invocations", b"a film\nanother\n", "text/csv"),
    "SageMaker, lines": ("/invocations", b'{"inputs": "a film"}\n', "application/jsonlines"),
    "SageMaker, lines of texts": ("/invocations", b'"a film"\n', "application/jsonlines"),
}


def answer(path: str, body: bytes, **headers: str) -> Response:
    return send_request(FakeModels(), "POST", path, body, headers)


def without_ids(response: Response) -> Any:
    """The JSON of an answer without what is new in each."""
    value = json.loads(response.body or b"null")
    if isinstance(value, dict):
        return {name: each for name, each in value.items() if name not in ("id", "created")}
    return value


@pytest.mark.parametrize("name", list(CALLS))
def test_before_json_it_is_left_out(name: str) -> None:
    path, value = CALLS[name]
    body: Any = json.dumps(value).encode()
    headers = {"content-type": "application/json"}
    plain, marked = answer(path, body, **headers), answer(path, BOM_UTF8 + body, **headers)
    assert plain.status == marked.status < 500
    assert without_ids(marked) == without_ids(plain)


@pytest.mark.parametrize("name", list(PLAIN))
def test_before_a_text_it_is_left_out(name: str) -> None:
    path, body, kind = PLAIN[name]
    plain = answer(path, body, **{"content-type": kind})
    assert plain.status == 200
    assert answer(path, BOM_UTF8 + body, **{"content-type": kind}) == plain


def test_alone_it_is_no_text() -> None:
    refused = answer("/predictions/sentiment", BOM_UTF8, **{"content-type": "text/plain"})
    assert refused.status == 400 and b"is empty" in refused.body
