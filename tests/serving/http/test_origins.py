"""CORS: which pages may read answers, what a preflight is told, and what is never shared."""

from typing import Any

import httpx
import pytest

from serving import protocols
from serving.deployment.config import EndpointConfig
from serving.http.hosts import HostNames
from serving.http.keys import ApiKeys
from serving.http.messages import IGNORED_HEADER, TRUNCATED_HEADER
from serving.http.origins import Origins, parse_origin
from tests.support.apps import all_protocols, ask_app

PAGE = "https://app.example"
OTHER = "https://evil.example"
BODY = {"inputs": "a film"}


def ask(
    origin: str | None, method: str = "POST", path: str = "/predict", **settings: Any
) -> httpx.Response:
    headers = {} if origin is None else {"origin": origin}
    settings = {"origins": Origins([PAGE, "http://localhost:3000"])} | settings
    return ask_app(method, path, headers, BODY if method == "POST" else None, **settings)


def preflight(
    path: str, asked: str = "POST", origin: str = PAGE, names: str = "", **settings: Any
) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": asked}
    if names:
        headers["access-control-request-headers"] = names
    settings = {"origins": Origins([PAGE])} | settings
    return ask_app("OPTIONS", path, headers, **settings)


def cors_headers(response: httpx.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


def test_without_the_option_no_page_may_read_and_a_preflight_is_any_request() -> None:
    assert cors_headers(ask(PAGE, origins=None)) == set()
    refused = preflight("/predict", origins=None)
    assert (refused.status_code, cors_headers(refused)) == (405, set())
    assert "vary" not in ask(PAGE, origins=None).headers


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_an_allowed_page_may_read_the_answer_and_its_headers(origin: str) -> None:
    response = ask(origin)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert response.headers["vary"] == "Origin"
    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after", IGNORED_HEADER, TRUNCATED_HEADER} <= set(exposed)
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        None,
        "null",
        PAGE + ".evil.example",
        PAGE + ":8443",
        "http://app.example",
        "https://sub.app.example",
        "",
        PAGE + "/",
        "*",
    ],
)
def test_no_other_page_may_and_caches_are_told_why(origin: str | None) -> None:
    response = ask(origin)
    assert response.status_code == 200  # whoever is no browser does not care
    assert cors_headers(response) == set()
    assert response.headers["vary"] == "Origin"


def test_all_pages_may_where_all_are_allowed() -> None:
    for origin in (OTHER, "null", None):
        response = ask(origin, origins=Origins(["*"]))
        assert response.headers["access-control-allow-origin"] == "*"
        assert "vary" not in response.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/predict", 405), ("POST", "/hf/nobody", 404)],
)
def test_a_page_may_read_a_refusal(method: str, path: str, status: int) -> None:
    response = ask(PAGE, method, path)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == PAGE


def test_a_page_may_read_that_it_lacks_a_key() -> None:
    response = ask(PAGE, keys=ApiKeys([]))
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == PAGE


def test_a_preflight_is_answered_without_a_key() -> None:
    names = "authorization, content-type, x-stainless-os"
    response = preflight("/v1/embeddings", names=names, keys=ApiKeys([]))
    assert (response.status_code, response.content) == (204, b"")
    assert "content-length" not in response.headers
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-methods"] == "POST"
    assert response.headers["access-control-allow-headers"] == names
    assert response.headers["access-control-max-age"] == "7200"
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in response.headers


def test_a_preflight_names_the_methods_of_its_path() -> None:
    allowed = preflight("/predictions/sentiment").headers["access-control-allow-methods"]
    assert allowed == "POST, PUT"
    assert "GET" in preflight("/").headers["access-control-allow-methods"]
    assert preflight("/predict/").headers["access-control-allow-methods"] == "POST"
    assert preflight("/nowhere").status_code == 404


def test_a_preflight_of_another_page_allows_nothing() -> None:
    assert "access-control-allow-origin" not in preflight("/predict", origin=OTHER).headers


@pytest.mark.parametrize("names", ["a b", "a,,b", "x: y", "x" * 3000])
def test_a_preflight_repeats_names_of_headers_and_nothing_else(names: str) -> None:
    response = preflight("/predict", names=names)
    assert response.status_code == 400
    assert names not in response.text


def test_torchserve_still_describes_itself() -> None:
    origin = {"origin": PAGE}
    response = ask_app("OPTIONS", "/", origin, origins=Origins([PAGE]))
    assert response.json()["openapi"] == "3.1.0"


@pytest.mark.parametrize("allowed", [PAGE, "*"])
def test_nothing_of_operators_is_shared(allowed: str) -> None:
    origins, closed = Origins([allowed]), 0
    for protocol in all_protocols():
        for route in protocol.routes:
            path = route.path.replace("{model}", "sentiment").replace("{version}", "1")
            path = path.replace("{region}", "mine")
            asked = preflight(path, route.method, origins=origins)
            if route.scope in ("management", "metrics"):
                closed += 1
                assert "access-control-allow-origin" not in asked.headers, path
                response = ask(PAGE, route.method, path, origins=origins, keys=ApiKeys([]))
                assert cors_headers(response) == set(), path
            else:
                assert asked.headers["access-control-allow-origin"] == allowed, path
    assert closed > 8


def test_dns_rebinding_is_refused_all_the_same() -> None:
    hosts = HostNames([])
    for method in ("GET", "OPTIONS"):
        asked = {"origin": PAGE, "access-control-request-method": "GET", "host": "evil.example"}
        refused = ask_app(method, "/info", asked, origins=Origins(["*"]), hosts=hosts)
        assert (refused.status_code, cors_headers(refused)) == (421, set())


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("*", "*"),
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example:443", "https://app.example"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:443", "http://localhost:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(given: str, origin: str) -> None:
    assert parse_origin(given) == origin


@pytest.mark.parametrize(
    "given",
    ["", "null", "app.example", "https://app.example/", "https://*.example", "https://a b",
     "ftp://app.example", "https://user@app.example", "https://app.example:", "https://a\r\nx: y",
     "https://app.example,https://b.example", "file://"],
)  # fmt: skip
def test_what_is_no_origin_is_refused_with_the_way_out(given: str) -> None:
    with pytest.raises(ValueError, match="is no origin; give scheme, host and port alone"):
        EndpointConfig(registry="r", allowed_origins=(given,))


def test_headers_that_answers_have_are_exposed() -> None:
    exposed = ask(PAGE).headers["access-control-expose-headers"].split(", ")
    response = ask_app("POST", "/v2/models/sentiment/infer", body={
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
        "parameters": {"binary_data_output": True},
        "odd": 1,
    })  # fmt: skip
    assert response.status_code == 200 and protocols.ALL
    plain = {"content-type", "content-length"}
    assert set(response.headers) - plain <= set(exposed)
    assert {"inference-header-content-length", IGNORED_HEADER} <= set(response.headers)
