"""DNS rebinding: which Host headers a server answers, and how it refuses the others."""

import asyncio
import json
from typing import Any

import pytest

from serving import protocols
from serving.http.asgi import App
from serving.http.hosts import HostNames
from serving.http.messages import HTTPError
from tests.support.fake_models import FakeModels

NAMES = HostNames(["box.lan", "[fd00::1]"])


def ask(path: str, *headers: tuple[str, str], hosts: HostNames | None = NAMES) -> tuple[int, Any]:
    """Status and JSON of a GET with these headers as they are, by an app with these names."""
    sent: list[Any] = []
    body: list[dict[str, Any]] = [{"type": "http.request"}]

    async def receive() -> dict[str, Any]:
        return body.pop() if body else await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        raw = [(key.encode(), value.encode("latin-1")) for key, value in headers]
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": raw}
        await App(protocols.ALL, FakeModels(), hosts=hosts)(scope, receive, send)

    asyncio.run(run())
    return sent[0]["status"], json.loads(sent[1]["body"] or b"null")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "localhost.",
        "localhost.:80",
        "localhost:",
        "127.0.0.1:8000",
        "127.255.3.1",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]:1",
        "box.lan:9",
        "BOX.lan.",
        "[FD00::1]:8000",
    ],
)
def test_a_name_of_its_own_is_answered(host: str) -> None:
    NAMES.check_headers([(b"accept", b"*/*"), (b"host", host.encode())])


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:8000",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "evil-localhost",
        "evil.com.localhost",
        "sub.box.lan",
        "box.lan.evil",
        "localhost:80@evil.com",
        "user@localhost",
        "localhost/",
        "localhost:8000:8000",
        "localhost:80a",
        "localhost..",
        "localhost, evil.com",
        "local host",
        "loc\xe4lhost",
        "[::1",
        "::1",
        "[::1]evil.com",
        "[::1].evil.com",
        "[::2]",
        "[127.0.0.1]x",
        "0.0.0.0",
        "128.0.0.1",
        "10.0.0.1",
        "127.0.0.1\t",
        "2130706433",
        "",
        ":8000",
        ".",
    ],
)
def test_any_other_name_is_refused(host: str) -> None:
    with pytest.raises(HTTPError) as refused:
        NAMES.check_headers([(b"host", host.encode("latin-1"))])
    assert refused.value.kind == "misdirected"
    assert "--allow-host" in refused.value.message
    assert len(refused.value.message) < 400


def test_an_address_that_is_no_name_opens_nothing() -> None:
    with pytest.raises(HTTPError):
        HostNames(["", "box.lan"]).check_headers([(b"host", b"not a name")])


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/predict", {"error", "error_type"}),
        ("/predictions/sentiment", {"code", "type", "message"}),
        ("/v1/embeddings", {"error"}),
        ("/health", {"error", "error_type"}),
        ("/nowhere", {"error", "error_type"}),
    ],
)
def test_a_refusal_is_what_the_clients_of_the_path_read(path: str, keys: set[str]) -> None:
    status, answer = ask(path, ("host", "evil.com:8000"))
    assert (status, set(answer)) == (421, keys)
    assert "'evil.com'" in str(answer)
    assert "serve with --allow-host evil.com" in str(answer)


def test_the_one_foreign_name_of_several_headers_decides() -> None:
    own, foreign = ("host", "localhost"), ("host", "evil.com")
    assert ask("/health", foreign, own)[0] == ask("/health", own, foreign)[0] == 421
    assert ask("/health", own, own)[0] == 200


def test_only_the_host_header_counts_and_none_passes() -> None:
    forwarded = [("x-forwarded-host", "localhost"), ("forwarded", "host=localhost")]
    assert ask("/health", ("host", "evil.com"), *forwarded)[0] == 421
    assert ask("/health", ("host", "localhost"), ("x-forwarded-host", "evil.com"))[0] == 200
    assert ask("/health")[0] == 200


def test_a_server_of_any_name_answers_to_any() -> None:
    assert ask("/health", ("host", "evil.com"), hosts=None)[0] == 200
