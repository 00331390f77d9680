"""The service under Ray Serve, through its front door: real HTTP on a loopback port."""

import json
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from serving import client
from serving.deployment import app
from serving.deployment.config import EndpointConfig
from serving.engine.engine import Engine
from serving.interface import Limits
from serving.registry.registry import Registry
from tests.support.clients import ClientLoad
from tests.support.model_servers import make_registry
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.ray

MAX_BODY_BYTES = Limits().max_body_bytes

TEXTS = [f"{'a warm funny film ' * (i % 4)}{'dull' if i % 2 else 'good'} plot" for i in range(40)]


def replicas() -> list[psutil.Process]:
    """The processes of the endpoint's replicas, which Ray started for this one."""
    below = psutil.Process().children(recursive=True)
    return [each for each in below if "ServeReplica:bertha:replica" in " ".join(each.cmdline())]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("reviews") / "bundle", tiny_bert)


@pytest.fixture(scope="module")
def registry(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return make_registry(tmp_path_factory.mktemp("registry"), bundle)


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file to which all processes of the endpoint append a line for each request."""
    return tmp_path_factory.mktemp("log") / "requests.jsonl"


@pytest.fixture(scope="module")
def http(registry: Registry, log_file: Path) -> Iterator[httpx.Client]:
    """A client of the one endpoint of this module, of two replicas."""
    port = free_port()
    address = client.service_url("127.0.0.1", port)
    endpoint = EndpointConfig(
        registry=registry.address, port=port, min_replicas=2, max_replicas=2, log_file=log_file
    )
    with app.serve_locally(endpoint):
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


def test_front_and_replicas_tell_of_a_request_by_its_id(http: httpx.Client, log_file: Path) -> None:
    answered = http.post("/predict", json={"inputs": ["a warm film"]})
    refused = http.get("/-/replica")
    wanted = {each.headers["x-request-id"]: each.status_code for each in (answered, refused)}
    found: dict[str, dict[str, object]] = {}
    give_up = time.monotonic() + 30
    while not wanted.keys() <= found.keys() and time.monotonic() < give_up:
        lines = map(json.loads, log_file.read_text().splitlines())
        found = {line["request_id"]: line for line in lines}
    assert {each: found[each]["status"] for each in wanted} == wanted
    assert found[answered.headers["x-request-id"]]["model"] == "tiny"
    assert found[refused.headers["x-request-id"]]["protocol"] == "front"


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
        (b"[1, 2]", 400, "Validation"),
        (b'{"inputs": 7}', 400, "Validation"),
        (b'{"inputs": ["a", "b"], "pairs": true}', 400, "Validation"),
        (b'{"inputs": ""}', 400, "Empty"),
        (b'{"inputs": []}', 400, "Empty"),
        (json.dumps({"inputs": ["a"] * 2049}).encode(), 413, "Validation"),
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
        assert path in response.json()["error"]


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


def test_a_deployment_is_taken_up_without_a_restart(
    http: httpx.Client, registry: Registry, bundle: Path
) -> None:
    before = http.get("/v2/models/tiny").json()["versions"]
    version = registry.register(bundle, "tiny")
    with ClientLoad(str(http.base_url)) as load:
        time.sleep(1)
        registry.deploy("tiny", version)
        deadline = time.monotonic() + 20
        while _answering(http) != {version}:
            assert time.monotonic() < deadline
        time.sleep(1)
    assert set(load.seen) == {200}, "every request is answered throughout"
    assert load.seen[200] > 50
    assert version not in before


def _answering(http: httpx.Client) -> set[str]:
    """The versions that answered ten requests, so surely of both replicas."""
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}
    asked = [http.post("/v2/models/tiny/infer", json=body).json() for _ in range(10)]
    return {answer["model_version"] for answer in asked}


def test_a_killed_replica_loses_no_request_and_is_replaced(http: httpx.Client) -> None:
    victim, _ = replicas()
    victim.kill()
    statuses = Counter(
        http.post("/predict", json={"inputs": text}).status_code for text in TEXTS * 5
    )
    assert set(statuses) == {200}
    deadline = time.monotonic() + 90
    while "bertha_replicas 2" not in http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_metrics_are_those_of_all_replicas(http: httpx.Client) -> None:
    text = http.get("/metrics").text
    assert "bertha_replicas 2" in text
    assert 'bertha_requests_total{protocol="tei",route="/predict",status="200"}' in text


def test_a_port_in_use_is_one_clear_error(registry: Registry) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(app.PortUnavailable, match=f"{port} is in use; choose another"),
            app.serve_locally(EndpointConfig(registry=registry.address, port=port)),
        ):
            pass
