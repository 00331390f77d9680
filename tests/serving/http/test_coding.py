"""Content codings: which answers are packed for whom, and what a packed request may be called."""

import asyncio
import gzip
import json
import threading
import zlib
from typing import Any

import httpx
import pytest

from serving.http import asgi
from serving.http.asgi import App
from serving.http.coding import (
    MAX_IN_LOOP_BYTES,
    MIN_COMPRESSED_BYTES,
    accepts_gzip,
    coding_name,
    compress,
)
from serving.interface import Limits
from tests.support.apps import all_protocols, ask_app
from tests.support.fake_models import FakeModels


def embed(number: int, accepted: str | None) -> httpx.Response:
    headers = {} if accepted is None else {"accept-encoding": accepted}
    body = {"input": [f"text {each}" for each in range(number)], "model": "mini"}
    models = FakeModels("mini", limits=Limits(max_texts=2048))
    return ask_app("POST", "/v1/embeddings", headers, body, models)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("*", True),
        ("gzip, deflate, br, zstd", True),
        ("gzip;q=0.001", True),
        ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
        (" gzip ; q=1.000 ,identity; q=0", True),
        ("identity;q=0, *", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
        ("deflate", False),
        ("gzip;q=0.5, identity", False),
        ("identity;q=0.6, gzip;q=0.5", False),
        ("gzipped", False),
        ("gzip;q=2", False),
        ("gzip;q=0.0001", False),
        ("gzip;q=x", False),
        ("gzip;level=9", False),
        ("gzip br", False),
        (",,,", False),
        (", gzip,", True),
    ],
)
def test_gzip_is_for_whoever_wants_it_no_less_than_nothing(header: str, wanted: bool) -> None:
    assert accepts_gzip(header) is wanted


@pytest.mark.parametrize("number", [40, 400])
def test_a_large_answer_is_packed_where_asked(number: int) -> None:
    plain, packed = embed(number, None), embed(number, "gzip")
    assert len(plain.content) > MIN_COMPRESSED_BYTES
    assert (len(plain.content) > MAX_IN_LOOP_BYTES) is (number == 400)
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.json() == plain.json()
    assert int(packed.headers["content-length"]) < len(plain.content) * 0.7
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in embed(number, "gzip;q=0").headers


def test_a_small_answer_is_not() -> None:
    response = embed(1, "gzip")
    assert "content-encoding" not in response.headers and "vary" not in response.headers


def test_nor_is_one_that_would_not_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "compress", lambda body: body + b"more")
    assert "content-encoding" not in embed(40, "gzip").headers


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json"])
def test_pages_and_errors_are_packed_as_well(path: str) -> None:
    plain, packed = ask_app("GET", path), ask_app("GET", path, {"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.content == plain.content
    assert "accept-encoding" in packed.headers["vary"].lower()


def test_a_question_for_the_head_has_the_head_of_the_answer() -> None:
    asked = {"accept-encoding": "gzip"}
    whole, head = ask_app("GET", "/docs", asked), ask_app("HEAD", "/docs", asked)
    assert head.content == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_a_large_answer_is_packed_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[int, Any] = {}

    def noted(body: bytes) -> bytes:
        threads[len(body)] = threading.current_thread()
        return compress(body)

    monkeypatch.setattr(asgi, "compress", noted)
    embed(40, "gzip")
    embed(400, "gzip")
    small, large = sorted(threads)
    assert small <= MAX_IN_LOOP_BYTES < large
    assert threads[small] is threading.main_thread()
    assert threads[large] is not threading.main_thread()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("X-GZIP", gzip.compress),
        (" gzip ", gzip.compress),
        ("deflate", zlib.compress),
        ("identity", bytes),
        ("", bytes),
    ],
)
def test_a_packed_request_is_read_by_any_name_of_its_coding(coding: str, pack: Any) -> None:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(App(all_protocols(), FakeModels()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = pack(json.dumps({"inputs": "a film"}).encode())
            headers = {"content-encoding": coding}
            return await client.post("/predict", content=body, headers=headers)

    assert asyncio.run(run()).status_code == 200


@pytest.mark.parametrize("coding", ["br", "x-deflate", "x-identity", "gzip, gzip", "zstd"])
def test_no_other_coding_is(coding: str) -> None:
    response = ask_app("POST", "/predict", {"content-encoding": coding}, {"inputs": "a"})
    assert response.status_code == 400
    assert "send gzip, deflate or identity" in response.text
    assert coding_name(coding) == coding
