"""Below a path of a proxy: pages, documentation and routes, whoever takes the prefix off."""

import pytest

from serving.deployment.config import EndpointConfig
from serving.http.keys import ApiKeys
from serving.http.prefix import find_prefix, parse_prefix, strip_prefix
from serving.http.routing import Router
from tests.support.apps import all_protocols, ask_app

BODY = {"inputs": "a film"}
FORWARDED = {"x-forwarded-prefix": "/team/bertha"}


@pytest.mark.parametrize("path", ["/predict", "/team/bertha/predict", "/team/bertha/predict/"])
@pytest.mark.parametrize("told", ["by the option", "by the proxy"])
def test_a_call_is_answered_with_the_prefix_and_without_it(path: str, told: str) -> None:
    plain = ask_app("POST", "/predict", body=BODY)
    if told == "by the option":
        response = ask_app("POST", path, body=BODY, root_path="/team/bertha")
    else:
        response = ask_app("POST", path, FORWARDED, BODY)
    assert (response.status_code, response.json()) == (200, plain.json())


def test_without_either_there_is_no_such_path() -> None:
    assert ask_app("POST", "/team/bertha/predict", body=BODY).status_code == 404
    assert ask_app("POST", "/team/berthapredict", FORWARDED, BODY).status_code == 404
    assert ask_app("GET", "/team/bertha", FORWARDED).status_code == 200


def test_a_path_that_is_a_route_as_it_is_stays_so() -> None:
    models = ask_app("GET", "/v1/models").json()
    for path in ("/v1/models", "/v1/v1/models"):
        assert ask_app("GET", path, {"x-forwarded-prefix": "/v1"}).json() == models


def test_a_handler_sees_the_path_without_the_prefix() -> None:
    asked = {"model": "sentiment", "input": "a film"}
    plain = ask_app("POST", "/infinity/classify", body=asked).json()
    below = ask_app("POST", "/team/bertha/infinity/classify", FORWARDED, asked).json()
    assert plain.keys() == below.keys()
    assert plain["data"] == below["data"]


def test_an_error_is_what_the_clients_of_the_path_read() -> None:
    refused = ask_app("POST", "/team/bertha/predictions/nobody", FORWARDED, BODY)
    assert set(refused.json()) == {"code", "type", "message"}


def test_management_below_a_prefix_needs_its_key() -> None:
    for settings in ({}, {"keys": ApiKeys([])}):
        refused = ask_app("POST", "/team/bertha/manage/models?url=x", FORWARDED, **settings)
        assert refused.status_code in (401, 403)


@pytest.mark.parametrize("path", ["/", "/docs", "/docs/", "/team/bertha/docs"])
def test_the_links_of_a_page_lie_below_the_prefix(path: str) -> None:
    plain = ask_app("GET", path.removeprefix("/team/bertha")).text
    assert 'href="/openapi.json"' in plain
    for page in (
        ask_app("GET", path, FORWARDED),
        ask_app("GET", path, root_path="/team/bertha"),
    ):
        assert page.status_code == 200
        assert 'href="/team/bertha/openapi.json"' in page.text
        assert page.text.replace('href="/team/bertha/', 'href="/') == plain
        assert "x-forwarded-prefix" in page.headers["vary"]
    script = plain.partition("<script>")[2]
    assert "fetch(ROOT + " in script and 'fetch("/' not in script


def test_the_document_names_the_server_below_the_prefix() -> None:
    plain = ask_app("GET", "/openapi.json").json()
    assert plain["servers"] == [{"url": "/"}]
    for document in (
        ask_app("GET", "/openapi.json", FORWARDED),
        ask_app("GET", "/team/bertha/openapi.json", root_path="/team/bertha"),
    ):
        assert document.json() == plain | {"servers": [{"url": "/team/bertha"}]}
        assert "x-forwarded-prefix" in document.headers["vary"]
    own = ask_app("OPTIONS", "/", FORWARDED).json()
    assert own["servers"] == [{"url": "/team/bertha"}]


@pytest.mark.parametrize(
    ("given", "prefix"),
    [("", ""), ("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a-b/v1.2/~x_", "/a-b/v1.2/~x_")],
)
def test_a_prefix_is_kept_without_its_last_slash(given: str, prefix: str) -> None:
    assert parse_prefix(given) == prefix
    assert EndpointConfig(registry="r", root_path=given).root_path == prefix
    assert find_prefix({"x-forwarded-prefix": given}, "/other") == prefix


@pytest.mark.parametrize(
    "given",
    ["a", "//evil.example", "/a//b", "/..", "/a/../b", "/.", "/a b", "/a?b", "/a#b", "/a%2f",
     "/a\\b", "/a\"b", "/a'b", "/<script>", "/a\r\nx: y", "/a,/b", "https://evil.example",
     "/\u00e4", "/a" * 101, "/a//"],
)  # fmt: skip
def test_what_is_none_is_refused_of_the_option_and_ignored_of_a_client(given: str) -> None:
    with pytest.raises(ValueError, match="is no path to put a server below"):
        EndpointConfig(registry="r", root_path=given)
    assert find_prefix({"x-forwarded-prefix": given}, "/own") == "/own"
    raw = given.encode("latin-1").decode("latin-1") if given.isascii() else ""
    if raw.isprintable():
        page = ask_app("GET", "/docs", {"x-forwarded-prefix": raw})
        assert page.status_code == 200 and 'href="/openapi.json"' in page.text


def test_only_a_whole_prefix_is_taken_off() -> None:
    assert strip_prefix("/a/b", "/a") == "/b"
    assert strip_prefix("/a", "/a") == strip_prefix("/a/", "/a") == "/"
    assert strip_prefix("/ab", "/a") is strip_prefix("/b", "/a") is strip_prefix("/b", "") is None


def test_every_route_is_answered_with_a_slash_behind_it() -> None:
    router = Router(all_protocols())
    for protocol in all_protocols():
        for route in protocol.routes:
            path = route.path.replace("{", "").replace("}", "")
            match = router.match(route.method, path)
            slashed = router.match(route.method, path.rstrip("/") + "/")
            assert (slashed.route.path, slashed.path_params) == (
                match.route.path,
                match.path_params,
            )
