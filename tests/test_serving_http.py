"""The HTTP surface without a server: every refusal is JSON, limits hold, nothing leaks."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest
from tiny_bundle import write_tiny_bundle

from serving.engine import Engine, Prediction
from serving.http import MAX_BODY_BYTES, build
from serving.service import MAX_TEXTS, MAX_WAITING_BATCHES, Service
from trainers.encoding import EncodingError

Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Engine:
    return Engine.load(write_tiny_bundle(tmp_path_factory.mktemp("http") / "bundle", tiny_bert))


class Faulty:
    """An engine in front of a real one that holds, or raises what it is told to raise."""

    def __init__(self, engine: Engine) -> None:
        self.card = engine.card
        self.encode = engine.encode
        self.probe = engine.probe
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self._engine = engine

    def infer_rows(self, rows: Sequence[object]) -> list[Prediction]:
        assert self.free.wait(10)
        if self.error is not None:
            raise self.error
        return self._engine.infer_rows(rows)


def play(engine: object, scenario: Scenario) -> None:
    """Run a scenario with a client of a fresh service."""

    async def run() -> None:
        service = Service(engine, "tiny")
        transport = httpx.ASGITransport(build(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.wait_for(scenario(client), 30)
        await service.close()

    asyncio.run(run())


def ask(engine: object, method: str, path: str, **request: object) -> httpx.Response:
    """The response to one request."""
    responses = []

    async def scenario(client: httpx.AsyncClient) -> None:
        responses.append(await client.request(method, path, **request))

    play(engine, scenario)
    return responses[0]


def assert_error(response: httpx.Response, status: int, error_type: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] == error_type
    assert words in error["error"]
    assert "Traceback" not in response.text


def test_an_answer_is_the_engines_own(engine: Engine) -> None:
    response = ask(engine, "POST", "/predict", json={"inputs": "a warm film"})
    (prediction,) = engine.predict(["a warm film"])
    scores = {each["label"]: each["score"] for each in response.json()}
    expected = dict(zip(engine.card.labels, prediction.scores, strict=True))
    assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "nonsense", ""]
)
def test_any_content_type_will_do(engine: Engine, content_type: str) -> None:
    response = ask(
        engine,
        "POST",
        "/predict",
        content=b'{"inputs": "a film"}',
        headers={"content-type": content_type},
    )
    assert response.status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread(engine: Engine) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-length": str(MAX_BODY_BYTES + 1)}
    response = ask(engine, "POST", "/predict", content=never(), headers=headers)
    assert_error(response, 413, "Validation", "bytes")


def test_a_body_that_turns_out_too_large_is_refused_on_the_way(engine: Engine) -> None:
    chunk, sent = b" " * 65536, []

    async def endless() -> AsyncIterator[bytes]:
        while len(sent) < 1000:
            sent.append(len(chunk))
            yield chunk

    assert_error(ask(engine, "POST", "/predict", content=endless()), 413, "Validation", "bytes")
    assert sum(sent) <= MAX_BODY_BYTES + 2 * len(chunk)


def test_the_largest_body_is_read(engine: Engine) -> None:
    text = "film " * (MAX_BODY_BYTES // 5 - 10)
    assert ask(engine, "POST", "/predict", json={"inputs": text}).status_code == 200


def test_too_long_a_text_is_cut_unless_that_is_forbidden(engine: Engine) -> None:
    text = "a film " * 20
    assert ask(engine, "POST", "/predict", json={"inputs": text}).status_code == 200
    refused = ask(engine, "POST", "/predict", json={"inputs": ["a", text], "truncate": False})
    assert_error(refused, 413, "Validation", "1 of 2 texts longer than 16 tokens")


def test_a_malformed_body_is_refused(engine: Engine) -> None:
    assert_error(ask(engine, "POST", "/predict", content=b"{"), 400, "Validation")


@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/..%2f..%2fetc/passwd", "/%00"])
def test_an_unknown_path_is_a_json_404(engine: Engine, path: str) -> None:
    assert_error(ask(engine, "GET", path), 404, "Validation", "see /docs")


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/predict", "POST"), ("DELETE", "/health", "GET")]
)
def test_a_wrong_method_is_a_json_405(engine: Engine, method: str, path: str, allowed: str) -> None:
    response = ask(engine, method, path)
    assert_error(response, 405, "Validation", method)
    assert response.headers["allow"] == allowed


def test_a_failing_model_is_reported_and_health_follows_it(engine: Engine) -> None:
    faulty = Faulty(engine)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health")).status_code == 200
        faulty.error = RuntimeError("secret detail")
        response = await client.post("/predict", json={"inputs": "a film"})
        assert_error(response, 424, "Backend", "RuntimeError")
        assert "secret detail" not in response.text
        assert_error(await client.get("/health"), 503, "Unhealthy")
        faulty.error = None
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/predict", json={"inputs": "a film"})).status_code == 200

    play(faulty, scenario)


def test_an_error_of_our_own_is_a_json_500(engine: Engine) -> None:
    faulty = Faulty(engine)
    faulty.encode = lambda texts: 1 / 0
    response = ask(faulty, "POST", "/predict", json={"inputs": "a film"})
    assert_error(response, 500, "Internal", "log")
    assert "ZeroDivision" not in response.text


def test_a_text_that_cannot_be_encoded_is_refused(engine: Engine) -> None:
    faulty = Faulty(engine)

    def encode(texts: Sequence[str]) -> object:
        raise EncodingError("text 1 holds 2 numbers, not 1")

    faulty.encode = encode
    response = ask(faulty, "POST", "/predict", json={"inputs": "1 2"})
    assert_error(response, 422, "Tokenizer", "2 numbers")


def test_overload_is_a_json_429_with_a_time_to_come_back(engine: Engine) -> None:
    faulty = Faulty(engine)
    faulty.free.clear()

    async def scenario(client: httpx.AsyncClient) -> None:
        texts = ["a film " * 20] * MAX_TEXTS
        budget = (await client.get("/info")).json()["max_batch_tokens"]
        some = MAX_WAITING_BATCHES * budget // (16 * MAX_TEXTS) + 8
        tasks = [
            asyncio.create_task(client.post("/predict", json={"inputs": texts}))
            for _ in range(some)
        ]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            assert_error(task.result(), 429, "Overloaded", "try again")
            assert int(task.result().headers["retry-after"]) >= 1
        faulty.free.set()
        statuses = [response.status_code for response in await asyncio.gather(*tasks)]
        assert set(statuses) == {200, 429}
        assert (await client.post("/predict", json={"inputs": "a film"})).status_code == 200

    play(faulty, scenario)


def test_concurrent_answers_equal_those_one_by_one(engine: Engine) -> None:
    words = ["good", "bad", "film", "cast", "the", "warm", "dull"]
    bodies = [{"inputs": " ".join(words[: i % 7 + 1] * (i % 3 + 1))} for i in range(60)]

    async def scenario(client: httpx.AsyncClient) -> None:
        one_by_one = [(await client.post("/predict", json=body)).json() for body in bodies]
        at_once = await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))
        for expected, response in zip(one_by_one, at_once, strict=True):
            for label, there in zip(expected, response.json(), strict=True):
                assert label["label"] == there["label"]
                assert label["score"] == pytest.approx(there["score"], abs=1e-5)

    play(engine, scenario)


def test_info_is_the_cards(engine: Engine) -> None:
    info = ask(engine, "GET", "/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "negative", "1": "positive"}
    assert info["max_input_length"] == 16
    assert info["max_client_batch_size"] == MAX_TEXTS
    assert info["metrics"] == {"accuracy": 0.875, "f1": 0.87}
    assert info["model_sha"] == engine.card.files["model.safetensors"]


def test_the_schema_says_what_predict_reads_and_answers(engine: Engine) -> None:
    schema = ask(engine, "GET", "/openapi.json").json()
    predict = schema["paths"]["/predict"]["post"]
    body = predict["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["inputs"]
    assert set(body["properties"]) >= {"inputs", "raw_scores", "truncate"}
    assert set(predict["responses"]) == {"200", "400", "413", "422", "424", "429", "503"}
    answer = predict["responses"]["200"]["content"]["application/json"]["schema"]
    assert "LabelScore" in json.dumps(answer)
    assert "$defs" not in json.dumps(body)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_whole_and_fetch_nothing_from_elsewhere(engine: Engine, path: str) -> None:
    response = ask(engine, "GET", path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["content-security-policy"]
    for forbidden in ("innerHTML", 'src="http', 'href="http', "@import", "cdn"):
        assert forbidden not in response.text
