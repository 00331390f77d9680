"""The HTTP app over a server of tiny models: limits, keys, ids, errors, pages, metrics."""

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving import protocols
from serving.engine.engine import Engine
from serving.http import keys
from serving.http.asgi import App
from serving.http.keys import ApiKeys
from serving.http.log_lines import configure_logs
from serving.http.tracing import RequestTracer
from serving.inference.model_server import ModelServer
from serving.interface import Limits
from serving.registry.registry import Registry
from tests.support.fake_models import FakeModels
from tests.support.model_servers import make_registry, run_scenario, send_request
from tests.support.tiny_bundle import write_tiny_bundle

LIMITS = Limits()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("app") / "bundle", tiny_bert)


@pytest.fixture(scope="module")
def registry(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return make_registry(tmp_path_factory.mktemp("registry"), bundle)


def assert_error(response: httpx.Response, status: int, error_type: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] == error_type
    assert words in error["error"]
    assert "Traceback" not in response.text


def test_an_answer_is_the_engines_own(registry: Registry, bundle: Path) -> None:
    response = send_request(registry, "POST", "/predict", json={"inputs": "a warm film"})
    engine = Engine.load(bundle)
    (prediction,) = engine.predict(["a warm film"])
    scores = {each["label"]: each["score"] for each in response.json()}
    expected = dict(zip(engine.card.labels, prediction.scores, strict=True))
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "nonsense", ""]
)
def test_any_content_type_will_do(registry: Registry, content_type: str) -> None:
    headers = {"content-type": content_type}
    body = b'{"inputs": "a film"}'
    assert (
        send_request(registry, "POST", "/predict", content=body, headers=headers).status_code == 200
    )


def test_a_body_that_says_it_is_too_large_is_refused_unread(registry: Registry) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-length": str(LIMITS.max_body_bytes + 1)}
    response = send_request(registry, "POST", "/predict", content=never(), headers=headers)
    assert_error(response, 413, "Validation", "bytes")


def test_a_body_that_turns_out_too_large_is_refused_on_the_way(registry: Registry) -> None:
    chunk, sent = b" " * 65536, []

    async def endless() -> AsyncIterator[bytes]:
        while len(sent) < 1000:
            sent.append(len(chunk))
            yield chunk

    assert_error(
        send_request(registry, "POST", "/predict", content=endless()), 413, "Validation", "bytes"
    )
    assert sum(sent) <= LIMITS.max_body_bytes + 2 * len(chunk)


def test_the_largest_body_is_read(registry: Registry) -> None:
    text = "film " * (LIMITS.max_body_bytes // 5 - 10)
    assert send_request(registry, "POST", "/predict", json={"inputs": text}).status_code == 200


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_read(registry: Registry, coding: str, pack: object) -> None:
    body = json.dumps({"inputs": "a warm film"}).encode()
    plain = send_request(registry, "POST", "/predict", content=body)
    assert callable(pack)
    headers = {"content-encoding": coding}
    packed = send_request(registry, "POST", "/predict", content=pack(body), headers=headers)
    assert packed.json() == plain.json()


def test_a_gzip_body_of_several_members_is_read_whole(registry: Registry) -> None:
    parts = (b'{"inputs": ', b'"a warm ', b'film"}')
    body = b"".join(gzip.compress(part, mtime=0) for part in parts)
    headers = {"content-encoding": "gzip"}
    packed = send_request(registry, "POST", "/predict", content=body, headers=headers)
    plain = send_request(registry, "POST", "/predict", content=b"".join(parts))
    assert packed.status_code == 200 and packed.json() == plain.json()


@pytest.mark.parametrize(
    ("body", "coding", "status", "words"),
    [
        (b"not gzip", "gzip", 400, "is not gzip"),
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "gzip", 400, "ends too early"),
        (gzip.compress(b" " * 50_000_000, mtime=0), "gzip", 413, "larger than"),
        (b"{}", "br", 400, "'br'"),
        (gzip.compress(b'{"inputs": "a"}', mtime=0) + b"more", "gzip", 400, "is not gzip"),
        (gzip.compress(b" " * 9_000_000, mtime=0) * 2, "gzip", 413, "larger than"),
        (gzip.compress(b"", mtime=0) * 101, "gzip", 400, "goes on behind its end"),
        (zlib.compress(b'{"inputs": "a"}') * 2, "deflate", 400, "goes on behind its end"),
    ],
)
def test_a_body_that_does_not_unpack_is_refused(
    registry: Registry, body: bytes, coding: str, status: int, words: str
) -> None:
    headers = {"content-encoding": coding}
    response = send_request(registry, "POST", "/predict", content=body, headers=headers)
    assert_error(response, status, "Validation", words)


def test_too_long_a_text_is_cut_unless_that_is_forbidden(registry: Registry) -> None:
    text = "a film " * 20
    assert send_request(registry, "POST", "/predict", json={"inputs": text}).status_code == 200
    refused = send_request(
        registry, "POST", "/predict", json={"inputs": ["a", text], "truncate": False}
    )
    assert_error(refused, 413, "Validation", "1 of 2 texts longer than 16 tokens")


@pytest.mark.parametrize("path", ["/nowhere", "/predict//", "/..%2f..%2fetc/passwd", "/%00"])
def test_an_unknown_path_is_a_json_404(registry: Registry, path: str) -> None:
    response = send_request(registry, "GET", path)
    assert response.status_code == 404
    assert "see /docs" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/predict", "POST"), ("DELETE", "/health", "GET")]
)
def test_a_wrong_method_is_a_json_405(
    registry: Registry, method: str, path: str, allowed: str
) -> None:
    response = send_request(registry, method, path)
    assert_error(response, 405, "Validation", f"does not answer {method}; use {allowed}")


def test_a_head_is_a_get_without_a_body(registry: Registry) -> None:
    response = send_request(registry, "HEAD", "/docs")
    assert response.status_code == 200 and response.content == b""


def test_overload_is_a_json_429_with_a_time_to_come_back(registry: Registry) -> None:
    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        body = {"inputs": ["a film " * 20] * 32}
        asked = [client.post("/predict", json=body) for _ in range(30)]
        responses = await asyncio.gather(*asked)
        refused = [each for each in responses if each.status_code == 429]
        assert refused and len(refused) < 30
        for each in refused:
            assert_error(each, 429, "Overloaded", "try again")
            assert int(each.headers["retry-after"]) >= 1
        assert (await client.post("/predict", json={"inputs": "a film"})).status_code == 200

    run_scenario(registry, scenario, Limits(max_waiting_requests=4))


def test_a_deadline_that_has_passed_costs_nothing(registry: Registry) -> None:
    headers = {"x-request-timeout-seconds": "1e-9"}
    response = send_request(
        registry, "POST", "/predict", json={"inputs": "a film"}, headers=headers
    )
    assert response.status_code == 504
    headers = {"x-request-timeout-seconds": "soon"}
    response = send_request(
        registry, "POST", "/predict", json={"inputs": "a film"}, headers=headers
    )
    assert response.status_code == 200


def test_a_request_keeps_its_id_and_gets_one_where_it_has_none(registry: Registry) -> None:
    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        named = await client.get("/info", headers={"x-request-id": "abc"})
        assert named.headers["x-request-id"] == "abc"
        total = named.headers["server-timing"].removeprefix("total;dur=")
        assert 0 < float(total) < 1000 * named.elapsed.total_seconds()
        ids = {(await client.get("/info")).headers["x-request-id"] for _ in range(5)}
        assert len(ids) == 5

    run_scenario(registry, scenario)


@pytest.mark.parametrize(
    "given", [b"a\r\nset-cookie: b=c", b"\x1b[31m", "ü".encode(), b"a\tb", b"\x7f", b""]
)
def test_an_id_that_no_header_or_log_may_hold_is_replaced(given: bytes) -> None:
    async def scenario() -> str:
        transport = httpx.ASGITransport(App(protocols.ALL, FakeModels()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/info", headers=[(b"x-request-id", given)])
            return response.headers["x-request-id"]

    assert re.fullmatch("[0-9a-f]{16}", asyncio.run(scenario()))


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("&".join(f"a{number}=1" for number in range(100)), 200),
        ("&" * 100, 400),
        ("a=" + "1" * 8190, 200),
        ("%" * 8193, 400),
        ("a=%ff&b=%zz&c", 200),
    ],
    ids=["fields", "many fields", "long", "too long", "broken escapes"],
)
def test_a_query_is_of_bounded_size(registry: Registry, query: str, status: int) -> None:
    response = send_request(registry, "GET", f"/info?{query}")
    assert response.status_code == status
    assert status == 200 or "larger than 8192 bytes or 100 fields" in response.json()["error"]


def test_keys_open_what_they_are_for(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    reader = keys.add_key(file, "reader", ("inference",))
    admin = keys.add_key(file, "admin", ("management",))
    slow = keys.add_key(file, "slow", ("inference",), requests_per_second=1.0)
    assert not any(secret in file.read_text() for secret in (reader, admin, slow))
    assert oct(file.stat().st_mode)[-3:] == "600"

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        async def status(key: str | None, path: str = "/predict") -> int:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            if path == "/predict":
                response = await client.post(path, json={"inputs": "a"}, headers=headers)
            else:
                response = await client.get(path, headers=headers)
            return response.status_code

        assert [await status(key) for key in (None, "wrong", reader, admin)] == [401, 401, 200, 403]
        assert await status(None, "/health") == 200
        managed = [await status(key, "/manage/models") for key in (None, reader, admin)]
        assert managed == [401, 403, 200]
        assert [await status(slow), await status(slow)] == [200, 429]

    run_scenario(registry, scenario, keys=ApiKeys(keys.load_keys(file)))


def test_without_keys_management_is_closed(registry: Registry) -> None:
    response = send_request(registry, "GET", "/manage/models")
    assert response.status_code == 403
    assert "--keys" in response.text


def test_what_was_asked_is_counted(registry: Registry) -> None:
    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        await client.post("/predict", json={"inputs": "a film"})
        await client.post("/predict", content=b"{")
        await client.post("/v2/models/tiny/infer", content=b"{")
        text = (await client.get("/metrics")).text
        asked = 'bertha_requests_total{protocol="tei",route="/predict",status='
        assert f'{asked}"200"}} 1' in text and f'{asked}"400"}} 1' in text
        assert 'route="/v2/models/{model}/infer",status="400"} 1' in text
        assert 'bertha_request_seconds_count{protocol="tei",route="/predict"} 2' in text
        assert text.count("# TYPE bertha_request_seconds histogram") == 1

    run_scenario(registry, scenario)


def test_a_request_leaves_a_line_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        app = App(protocols.ALL, FakeModels(), log_requests=True)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"x-request-id": "7", "authorization": "Bearer hidden"}
            await client.post("/predict", json={"inputs": "secret"}, headers=headers)

    configure_logs()
    asyncio.run(scenario())
    said = capsys.readouterr().out
    line = json.loads(said)
    assert line["milliseconds"] > 0 and "secret" not in said and "hidden" not in said
    found = {key: line[key] for key in ("request_id", "protocol", "route", "status", "client")}
    assert found == {
        "request_id": "7",
        "protocol": "tei",
        "route": "/predict",
        "status": 200,
        "client": "127.0.0.1",
    }


def test_what_versions_did_is_counted(registry: Registry) -> None:
    async def scenario(client: httpx.AsyncClient, models: ModelServer) -> None:
        await client.post("/predict", json={"inputs": ["a film", "dull"]})
        text = (await client.get("/metrics")).text
        labels = '{model="tiny",version="1"}'
        for name, number in (("texts", 2), ("answers", 1), ("failures", 0)):
            assert f"bertha_{name}_total{labels} {number}\n" in text
        assert f"bertha_model_loaded{labels} 1\n" in text
        models.executor.cache.evict_models([("tiny", "1")])
        assert "bertha_model_loaded{" not in (await client.get("/metrics")).text

    run_scenario(registry, scenario)


def test_a_request_leaves_a_span_in_its_callers_trace() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = RequestTracer(provider.get_tracer("test"))
    trace = "0af7651916cd43dd8448eb211c80319c"

    async def scenario() -> None:
        app = App(protocols.ALL, FakeModels(), tracer=traces)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "7"}
            await client.post("/predict", json={"inputs": "secret"}, headers=headers)

    asyncio.run(scenario())
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.attributes["status"]) == ("/predict", 200)
    assert span.attributes["request_id"] == "7"
    assert f"{span.context.trace_id:032x}" == trace
    assert "secret" not in span.to_json()


def test_concurrent_answers_equal_those_one_by_one(registry: Registry) -> None:
    words = ["good", "bad", "film", "cast", "the", "warm", "dull"]
    bodies = [{"inputs": " ".join(words[: i % 7 + 1] * (i % 3 + 1))} for i in range(60)]

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        one_by_one = [(await client.post("/predict", json=body)).json() for body in bodies]
        at_once = await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))
        for expected, response in zip(one_by_one, at_once, strict=True):
            for label, there in zip(expected, response.json(), strict=True):
                assert label["label"] == there["label"]
                assert label["score"] == pytest.approx(there["score"], abs=1e-5)

    run_scenario(registry, scenario, Limits(max_waiting_requests=100))


def test_who_leaves_early_is_dropped(registry: Registry) -> None:
    async def scenario(client: httpx.AsyncClient, models: ModelServer) -> None:
        request = client.post("/predict", json={"inputs": ["a film " * 20] * 32})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(request, 0.0005)
        await asyncio.sleep(0.05)
        assert models.executor.batcher.num_waiting == 0

    run_scenario(registry, scenario)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_whole_and_fetch_nothing_from_elsewhere(registry: Registry, path: str) -> None:
    response = send_request(registry, "GET", path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for forbidden in ("innerHTML", 'src="http', 'href="http', "@import", "cdn"):
        assert forbidden not in response.text
