"""The service under Ray Serve, through its front door: real HTTP on a loopback port."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tiny_bundle import write_tiny_bundle

from serving import app, client
from serving.engine import Engine
from serving.http import MAX_BODY_BYTES

pytestmark = pytest.mark.slow

TEXTS = [f"{'a warm funny film ' * (i % 4)}{'dull' if i % 2 else 'good'} plot" for i in range(40)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("reviews") / "bundle", tiny_bert)


@pytest.fixture(scope="module")
def http(bundle: Path) -> Iterator[httpx.Client]:
    """A client of the one service of this module."""
    port = free_port()
    address = client.url("127.0.0.1", port)
    with app.running(bundle, "127.0.0.1", port):
        client.wait_until_healthy(address)
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as session:
            yield session


@pytest.fixture(autouse=True)
def still_up(http: httpx.Client) -> Iterator[None]:
    """Whatever a test sends, the service answers afterwards."""
    yield
    assert http.post("/predict", json={"inputs": "a film"}).status_code == 200


def test_the_answer_is_the_engines_own(http: httpx.Client, bundle: Path) -> None:
    answers = http.post("/predict", json={"inputs": TEXTS[:8]}).json()
    engine = Engine.load(bundle)
    for answer, prediction in zip(answers, engine.predict(TEXTS[:8]), strict=True):
        scores = {each["label"]: each["score"] for each in answer}
        expected = dict(zip(engine.card.labels, prediction.scores, strict=True))
        assert scores == pytest.approx(expected, abs=1e-5)


def test_a_shell_users_form_encoded_json_is_read(http: httpx.Client) -> None:
    request = urllib.request.Request(f"{http.base_url}/predict", data=b'{"inputs": "a film"}')
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as response:
        assert len(json.load(response)) == 2


@pytest.mark.parametrize(
    ("body", "status", "error_type"),
    [
        (b"", 400, "Validation"),
        (b'{"inputs": "a', 400, "Validation"),
        (b'{"inputs": "\xff\xfe"}', 400, "Validation"),
        (b"\x00" * 1000, 400, "Validation"),
        (b"[1, 2]", 422, "Validation"),
        (b'{"inputs": 7}', 422, "Validation"),
        (b'{"inputs": ["a", "b"], "pairs": true}', 422, "Validation"),
        (b'{"inputs": ""}', 400, "Empty"),
        (b'{"inputs": []}', 400, "Empty"),
        (json.dumps({"inputs": ["a"] * 33}).encode(), 413, "Validation"),
        (json.dumps({"inputs": "a " * 99, "truncate": False}).encode(), 413, "Validation"),
        (b'{"inputs": "' + b"a" * MAX_BODY_BYTES + b'"}', 413, "Validation"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_json(
    http: httpx.Client, body: bytes, status: int, error_type: str
) -> None:
    response = http.post("/predict", content=body)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error_type"] == error_type


def test_a_body_that_never_ends_is_refused(http: httpx.Client) -> None:
    chunks = (b"x" * 65536 for _ in range(1000))
    try:
        response = http.post("/predict", content=chunks)
    except (httpx.WriteError, httpx.ReadError):
        return  # refused by hanging up on a client that kept sending
    assert response.status_code == 413


def test_unknown_paths_and_methods_are_json(http: httpx.Client) -> None:
    for method, path, status in (("GET", "/x", 404), ("GET", "/predict", 405)):
        response = http.request(method, path)
        assert response.status_code == status
        assert "see /docs" in response.json()["error"]


def test_concurrent_answers_equal_those_one_by_one(http: httpx.Client) -> None:
    def ask(text: str) -> dict[str, float]:
        response = http.post("/predict", json={"inputs": text})
        return {each["label"]: each["score"] for each in response.json()}

    one_by_one = [ask(text) for text in TEXTS]
    with ThreadPoolExecutor(16) as clients:
        at_once = list(clients.map(ask, TEXTS))
    for expected, answer in zip(one_by_one, at_once, strict=True):
        assert answer == pytest.approx(expected, abs=1e-5)


def test_a_client_that_leaves_early_harms_nobody(http: httpx.Client) -> None:
    for _ in range(5):
        with pytest.raises(httpx.TimeoutException):
            http.post("/predict", json={"inputs": TEXTS[:32]}, timeout=1e-3)


def test_health_info_pages_and_schema_are_there(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.get("/info").json()["labels"] == ["negative", "positive"]
    assert http.get("/openapi.json").json()["paths"].keys() >= {"/predict", "/health", "/info"}
    for path in ("/", "/docs"):
        assert http.get(path).text.startswith("<!doctype html>")


def test_a_port_in_use_is_one_clear_error(bundle: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(app.PortTaken, match=f"{port} is in use; choose another"),
            app.running(bundle, "127.0.0.1", port),
        ):
            pass
