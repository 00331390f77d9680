"""Requests that no client would send, over real sockets to real models: never a 5xx, never dead.

python tests/integration/test_serving_fuzz.py 20000     # as many mutated requests, and schemathesis
beside
"""

import base64
import gzip
import http.client
import json
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from serving.deployment.config import EndpointConfig
from serving.deployment.server import ReplicaServer
from serving.registry.registry import Registry
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.slow

TEXT = "a warm film"
BINARY = (
    b'{"inputs":[{"name":"text","shape":[2],"datatype":"BYTES","parameters":'
    b'{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}'
)
SEEDS: list[tuple[str, str, bytes, dict[str, str]]] = [
    ("POST", "/predict", json.dumps({"inputs": [TEXT, "dull"]}).encode(), {}),
    ("POST", "/predict", gzip.compress(b'{"inputs":"a"}', mtime=0), {"content-encoding": "gzip"}),
    ("POST", "/", json.dumps({"inputs": TEXT, "parameters": {"top_k": 1}}).encode(), {}),
    ("POST", "/hf/tiny:1", json.dumps({"inputs": [TEXT]}).encode(), {}),
    ("POST", "/hf/mask", json.dumps({"inputs": "a [MASK] film"}).encode(), {}),
    ("POST", "/embed", json.dumps({"inputs": TEXT}).encode(), {}),
    ("POST", "/rerank", json.dumps({"query": "a", "texts": ["b", "c"]}).encode(), {}),
    ("POST", "/v1/embeddings", json.dumps({"model": "tiny", "input": TEXT}).encode(), {}),
    ("POST", "/classify", json.dumps({"model": "tiny", "input": [TEXT]}).encode(), {}),
    (
        "POST",
        "/v2/models/tiny/infer",
        BINARY + b"\x05\0\0\0hello\x03\0\0\0bye",
        {"inference-header-content-length": str(len(BINARY))},
    ),
    (
        "POST",
        "/v2/models/tiny/versions/1/infer",
        b'{"id":"1","inputs":[{"name":"text","shape":[2],"datatype":"BYTES","data":["a","b"]}],'
        b'"outputs":[{"name":"label","parameters":{"classification":2}}]}',
        {},
    ),
    ("POST", "/predictions/tiny", TEXT.encode(), {"content-type": "text/plain"}),
    (
        "POST",
        "/predictions/tiny/1",
        b'--x\r\nContent-Disposition: form-data; name="data"\r\n\r\na film\r\n--x--\r\n',
        {"content-type": "multipart/form-data; boundary=x"},
    ),
    ("POST", "/explanations/tiny", json.dumps({"data": "dull"}).encode(), {}),
    ("POST", "/explain/tiny", json.dumps({"inputs": "dull", "label": "negative"}).encode(), {}),
    ("POST", "/feedback", json.dumps({"text": TEXT, "label": "positive"}).encode(), {}),
    ("POST", "/feedback", b'{"request_id": "7", "index": 0, "label": "positive"}', {}),
    ("POST", "/predict", json.dumps({"inputs": TEXT}).encode(), {"x-request-id": "7"}),
    ("GET", "/drift", b"", {}),
    ("POST", "/v1/models/tiny:predict", json.dumps({"instances": [TEXT]}).encode(), {}),
    ("POST", "/invocations", b"a film\na cast", {"content-type": "text/csv"}),
    ("GET", "/v2/models/tiny/config", b"", {}),
    ("GET", "/info", b"", {}),
    ("GET", "/metrics", b"", {}),
]
INTERESTING = (
    b"\x00", b"\xff\xfe", b"\\ud800", b"1e999", b"-1", b"NaN", b"[" * 500, b'{"a":' * 300, b"null",
    b"99999999999999999999", b'""', b"%00", b"\xf0\x9f\x8e\xac", b"true", b"\r\n", b"[[]]", b"{}",
)  # fmt: skip


def mutated(body: bytes, chance: random.Random) -> bytes:
    """A body with some of it flipped, cut, doubled or replaced."""
    data = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[place : place + chance.randrange(1, 20)]
            case 2:
                data[place:place] = data[: chance.randrange(40)]
            case 3:
                data[place:place] = chance.choice(INTERESTING)
            case _:
                data[place:place] = chance.randbytes(chance.randrange(1, 12))
    return bytes(data)


def unlikely(chance: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """A request near one that a client would send."""
    method, path, body, headers = chance.choice(SEEDS)
    headers = dict(headers)
    if chance.random() < 0.1:
        path += chance.choice(
            ("/", "%2f", "?top_k=-1", "/../x", "%ff", ":9", "@no", "?a=%zz", "?" + "&" * 200)
        )
    if chance.random() < 0.1:
        headers["content-encoding"] = chance.choice(("gzip", "deflate", "br", "x" * 300))
    if chance.random() < 0.1:
        headers["inference-header-content-length"] = chance.choice(("-1", "0", "9" * 40, "x", "7"))
    if chance.random() < 0.1:
        name = chance.choice(("host", "x-request-id", "x-request-timeout-seconds", "content-type"))
        headers[name] = chance.choice(
            ("evil.com", "localhost", "[::1]:8", "a@b", "9" * 5000, "text/csv", "\x80", "-1", "")
        )
    if chance.random() < 0.05:
        method = chance.choice(("PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "GET"))
    return method, path, mutated(body, chance), headers


def storm(address: str, number: int, seed: int) -> Counter[int]:
    """Statuses of so many unlikely requests; raises where the server answers a 5xx or not."""
    chance, seen = random.Random(seed), Counter[int]()
    connection = http.client.HTTPConnection(address, timeout=60)
    for _ in range(number):
        method, path, body, headers = unlikely(chance)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        said = response.read()
        seen[response.status] += 1
        asked = f"{method} {path} {headers} {base64.b64encode(body).decode()}"
        assert response.status < 500, f"{response.status} {said[:200]!r} for {asked}"
        if response.will_close:
            connection.close()
    connection.close()
    return seen


def endpoint_at(place: Path, bert: Path) -> ReplicaServer:
    """A listener of a classifier and a masked language model."""
    registry = Registry.open(str(place / "registry"))
    for name, task in (("tiny", "classification"), ("mask", "masked-lm")):
        bundle = write_tiny_bundle(place / name / "bundle", bert, task)
        registry.deploy(name, registry.register(bundle, name))
    registry.make_default("tiny")
    config = EndpointConfig(registry=registry.address, cache_mib=1, feedback=place / "feedback")
    listener = ReplicaServer(config, "127.0.0.1")
    listener.start()
    return listener


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> object:
    found = endpoint_at(tmp_path_factory.mktemp("fuzz"), tiny_bert)
    yield found
    found.stop()


def test_mutated_requests_are_answered_or_refused(listener: ReplicaServer) -> None:
    seen = storm(listener.address, 2000, seed=0)
    assert seen[200] > 100 and seen[400] > 100 and seen[421] > 10
    assert listener.run_in_loop(lambda house: house.is_ready())


def survey(address: str, examples: int) -> int:
    """Let schemathesis ask what the schema allows, and what it forbids; how many it asked."""
    schema = schemathesis.openapi.from_url(f"http://{address}/openapi.json")
    asked = 0
    for operation in schema.get_all_operations():
        strategy = operation.ok().as_strategy()

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=strategy)
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            response = case.call(base_url=f"http://{address}")
            assert response.status_code < 500, f"{case.as_curl_command()}: {response.text[:200]}"

        ask()
    return asked


def test_what_the_schema_allows_is_never_a_5xx(listener: ReplicaServer) -> None:
    assert survey(listener.address, 5) > 100
    assert listener.run_in_loop(lambda house: house.is_ready())


def main(number: int) -> None:
    from tests.support.tiny import write_tiny_bert

    with tempfile.TemporaryDirectory() as place:
        listener = endpoint_at(Path(place), write_tiny_bert(Path(place) / "bert"))
        for seed in range(10):
            print(f"seed {seed}", dict(sorted(storm(listener.address, number // 10, seed).items())))
        print("schemathesis", survey(listener.address, 100), "requests, none a 5xx")
        listener.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
