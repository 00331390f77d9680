"""Pages of other origins, proxies with a prefix and clients that unpack, behind the real front."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from serving.deployment.config import EndpointConfig
from serving.deployment.haproxy import ServerSlot
from serving.deployment.server import ReplicaServer
from serving.http.keys import add_key
from tests.support.haproxies import balanced
from tests.support.model_servers import make_registry
from tests.support.tiny_bundle import write_tiny_bundle

pytestmark = pytest.mark.multiprocess

PAGE = {"origin": "https://app.example"}
BODY = {"inputs": "a film"}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[httpx.Client]:
    """A client of HAProxy before one replica with keys, an origin and a root path."""
    place = tmp_path_factory.mktemp("browsers")
    bundle = write_tiny_bundle(place / "bundle", tiny_bert, "embedding")
    key = add_key(place / "keys", "mine", ("inference", "management"))
    endpoint = EndpointConfig(
        registry=make_registry(place / "registry", bundle).address,
        keys=place / "keys",
        allowed_origins=(PAGE["origin"],),
        root_path="/team/bertha",
    )
    server = ReplicaServer(endpoint, "127.0.0.1")
    server.start()
    try:
        with balanced(place / "front", endpoint.allowed_origins) as (haproxy, url, _):
            haproxy.enable_slot(ServerSlot(1, server.address))
            with httpx.Client(base_url=url, trust_env=False) as client:
                client.headers["authorization"] = f"Bearer {key}"
                yield client
    finally:
        server.stop()


def test_a_page_asks_first_without_a_key_and_then_with_one(front: httpx.Client) -> None:
    asked = {"access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type"
    del_key = {"authorization": ""}
    allowed = front.options("/embed", headers=PAGE | asked | del_key)
    assert (allowed.status_code, allowed.content) == (204, b"")
    assert allowed.headers["access-control-allow-origin"] == PAGE["origin"]
    assert allowed.headers["access-control-allow-headers"] == "authorization,content-type"
    answer = front.post("/embed", json=BODY, headers=PAGE)
    assert answer.status_code == 200
    assert answer.headers.get_list("access-control-allow-origin") == [PAGE["origin"]]
    assert answer.headers["x-request-id"]
    refused = front.post("/embed", json=BODY, headers=PAGE | del_key)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE["origin"]


def test_no_page_manages(front: httpx.Client) -> None:
    for path in ("/manage/models", "/team/bertha/manage/models"):
        answer = front.get(path, headers=PAGE)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_name_of_a_page_is_refused_whatever_its_origin(front: httpx.Client) -> None:
    answer = front.get("/health", headers=PAGE | {"host": "app.example"})
    assert answer.status_code == 421
    assert "access-control-allow-origin" not in answer.headers


def test_below_the_root_path_and_a_prefix_that_a_proxy_took_off(front: httpx.Client) -> None:
    plain = front.post("/embed", json=BODY).json()
    assert front.post("/team/bertha/embed", json=BODY).json() == plain
    taken = front.get("/docs", headers={"x-forwarded-prefix": "/other"})
    assert 'href="/other/openapi.json"' in taken.text
    (server,) = front.get("/team/bertha/openapi.json").json()["servers"]
    assert server == {"url": "/team/bertha"}
    assert front.get("/team/bertha/-/replica").status_code == 404


def test_a_large_answer_comes_packed_and_whole(front: httpx.Client) -> None:
    texts = {"inputs": [f"film {number}" for number in range(8)]}
    plain = front.post("/embed", json=texts, headers={"accept-encoding": "identity"})
    with front.stream("POST", "/embed", json=texts, headers={"accept-encoding": "gzip"}) as got:
        raw = b"".join(got.iter_raw())
    assert got.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(raw)) == plain.json()
    assert len(raw) < len(plain.content)


def test_a_triton_client_unpacks_its_tensors(front: httpx.Client) -> None:
    client = triton.InferenceServerClient(str(front.base_url).removeprefix("http://"))
    texts = triton.InferInput("text", [16], "BYTES")
    texts.set_data_from_numpy(np.array([f"film {each}" for each in range(16)], dtype=object))
    wanted = [triton.InferRequestedOutput("embedding", binary_data=True)]
    asked = {"model_name": "tiny", "inputs": [texts], "outputs": wanted}
    headers = {"authorization": front.headers["authorization"]}
    plain = client.infer(**asked, headers=headers)
    packed = client.infer(**asked, headers=headers, response_compression_algorithm="gzip")
    np.testing.assert_array_equal(packed.as_numpy("embedding"), plain.as_numpy("embedding"))
    client.close()
