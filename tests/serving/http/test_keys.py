"""Key files: who may write them and what a message tells of them; the rates of keys."""

import asyncio
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import protocols
from serving.__main__ import main
from serving.deployment import admin_routes
from serving.http.asgi import App
from serving.http.keys import ApiKey, ApiKeys, KeyFileError, add_key, load_keys
from serving.http.log_lines import configure_logs
from serving.http.messages import HTTPError
from tests.support.fake_models import FakeModels

KEY = "bertha_not-to-be-told"


def api_key(rate: float | None = None, **settings: Any) -> ApiKey:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    return ApiKey(name="mine", sha256=digest, requests_per_second=rate, **settings)


def authorize(keys: ApiKeys, scope: Any = "inference", key: str = KEY) -> str:
    return keys.authorize({"authorization": f"Bearer {key}"}, scope)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("inference",), {"inference"}),
        (("metrics",), {"metrics"}),
        (("management",), {"management", "metrics"}),
        (("inference", "metrics"), {"inference", "metrics"}),
    ],
)
def test_a_key_calls_what_it_is_for(scopes: Any, allowed: set[str]) -> None:
    keys = ApiKeys([api_key(scopes=scopes)])
    for scope in ("inference", "management", "metrics"):
        if scope in allowed:
            assert authorize(keys, scope) == "mine"
        else:
            with pytest.raises(HTTPError, match=f"key 'mine' is not for {scope}") as refused:
                authorize(keys, scope)
            assert refused.value.kind == "forbidden"


def test_a_key_for_metrics_is_made_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    assert main(["key", "prometheus", "--scope", "metrics", "--file", str(file)]) == 0
    secret = capsys.readouterr().out.strip()
    assert authorize(ApiKeys(load_keys(file)), "metrics", secret) == "prometheus"


async def no_samples() -> Any:
    return {}


async def no_canaries() -> Any:
    return ()


def app_with_keys(keys: ApiKeys | None, **options: Any) -> App:
    admin = admin_routes.admin_protocol(protocols.ALL, no_samples, no_canaries, lambda: True, "0")
    return App([*protocols.ALL, admin], FakeModels(), keys=keys, **options)


def status_of(app: App, path: str, key: str | None) -> int:
    async def run() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            return (await client.get(path, headers=headers)).status_code

    return asyncio.run(run())


@pytest.mark.parametrize("path", ["/metrics", "/canaries", "/drift"])
def test_counters_need_a_key_where_there_are_keys(path: str) -> None:
    assert status_of(app_with_keys(None), path, None) == 200
    reader = app_with_keys(ApiKeys([api_key(scopes=("metrics",))]))
    assert [status_of(reader, path, key) for key in (None, "wrong", KEY)] == [401, 401, 200]
    asker = app_with_keys(ApiKeys([api_key()]))
    assert [status_of(asker, path, KEY), status_of(asker, "/info", KEY)] == [403, 200]


def test_the_document_says_which_calls_need_a_key() -> None:
    async def document() -> Any:
        transport = httpx.ASGITransport(app_with_keys(None))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/openapi.json")).json()["paths"]

    paths = asyncio.run(document())
    for path in ("/metrics", "/canaries", "/drift", "/feedback", "/predict", "/manage/models"):
        for operation in paths[path].values():
            assert operation["security"] == [{"key": []}], path
            assert {"400", "401", "403", "413", "421"} <= operation["responses"].keys()
    for path in ("/", "/health", "/openapi.json"):
        operation = paths[path]["get"]
        assert operation["security"] == []
        assert "421" in operation["responses"]
        assert not {"401", "403"} & operation["responses"].keys()


def test_a_rate_is_shared_by_the_replicas_that_answer() -> None:
    now = 0.0
    keys = ApiKeys([api_key(rate=8.0)], num_replicas=8, clock=lambda: now)

    def count_allowed() -> int:
        allowed = 0
        for _ in range(100):
            try:
                authorize(keys)
            except HTTPError:
                return allowed
            allowed += 1
        return allowed

    assert count_allowed() == 1
    now = 1.0
    keys.num_replicas = 1
    assert count_allowed() == 8
    now = 2.0
    keys.num_replicas = 4
    assert count_allowed() == 2


def test_who_waits_as_long_as_it_is_told_to_is_answered() -> None:
    now = 0.0
    keys = ApiKeys([api_key(rate=0.4)], clock=lambda: now)
    authorize(keys)
    with pytest.raises(HTTPError) as refused:
        authorize(keys)
    assert refused.value.retry_after_seconds == pytest.approx(2.5)
    now = 2.5
    assert authorize(keys) == "mine"


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="requests_per_second"):
        add_key(tmp_path / "keys", "mine", ("inference",), rate)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to_is_refused(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "mine", ("inference",))
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(mode)
    for change in (lambda: load_keys(file), lambda: add_key(file, "more", ("inference",))):
        with pytest.raises(KeyFileError, match=f"others may write to it.* chmod 600 {file}"):
            change()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "mine", ("inference",))
    os.chown(file, 12345, -1)
    with pytest.raises(KeyFileError, match="belongs to user 12345, who could add keys"):
        load_keys(file)


def test_a_file_that_others_may_read_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    add_key(file, "mine", ("inference",))
    with caplog.at_level(logging.WARNING):
        file.chmod(0o640)
        assert len(load_keys(file)) == 1 and not caplog.records
        file.chmod(0o644)
        assert len(load_keys(file)) == 1
    assert [each.getMessage() for each in caplog.records] == [
        f"{file}: others may read who has keys; chmod 600 {file}"
    ]


def test_a_link_is_followed_to_a_file_and_none_is_made_behind_one(tmp_path: Path) -> None:
    file, link, dangling = tmp_path / "keys", tmp_path / "link", tmp_path / "dangling"
    add_key(file, "mine", ("inference",))
    link.symlink_to(file)
    assert load_keys(link) == load_keys(file)
    file.chmod(0o666)
    with pytest.raises(KeyFileError, match="others may write to it"):
        load_keys(link)
    dangling.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="name another with --file"):
        add_key(dangling, "mine", ("inference",))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (json.dumps({"name": "mine", "sha256": KEY}), "sha256 is missing or not valid"),
        (json.dumps({"name": "mine"}), "sha256 is missing or not valid"),
        (json.dumps({"name": "mine", "sha256": "0" * 64, "key": KEY}), "it is missing or not val"),
        (json.dumps({"name": "mine", "sha256": "0" * 64, "scopes": [KEY]}), "scopes is missing"),
        (
            json.dumps({"name": "mine", "sha256": "0" * 64, "requests_per_second": True}),
            "requests_per_second is missing or not valid",
        ),
        (KEY, "it is missing or not valid"),
        ("[" * 100_000 + KEY, "it is missing or not valid"),
    ],
)
def test_a_broken_line_is_named_and_not_told(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "first", ("inference",))
    with file.open("a") as more:
        more.write(line + "\n")
    with pytest.raises(KeyFileError, match=f"{file}, line 2: {words}") as refused:
        load_keys(file)
    assert KEY not in str(refused.value)


def test_bytes_that_are_no_text_are_a_broken_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\n")
    file.chmod(0o600)
    with pytest.raises(KeyFileError, match="is not text in UTF-8"):
        load_keys(file)


class BrokenModels(FakeModels):
    """Models with a bug in them, which has the text in hand."""

    async def predict(self, model: Any, texts: Any, *, truncate: bool = True) -> Any:
        raise RuntimeError("a bug")


def test_no_key_and_no_text_is_logged_or_told(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    text = "a text not to be told"
    keys = ApiKeys([api_key(rate=3.0)], clock=lambda: 0.0)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(
            App(protocols.ALL, BrokenModels(), keys=keys, log_requests=True)
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            url, body = f"/predict?key={KEY}", {"inputs": text}
            given = [f"Bearer {KEY}", f"Bearer {KEY}x", f"Basic {KEY}", *[f"Bearer {KEY}"] * 3]
            return [
                await client.post(
                    url, json=body, headers={"authorization": each, "x-request-id": "a b"}
                )
                for each in given
            ]

    configure_logs()
    with caplog.at_level(logging.DEBUG):
        answers = asyncio.run(run())
    assert [each.status_code for each in answers] == [500, 401, 401, 500, 500, 429]
    said = capsys.readouterr()
    assert said.out.count('"request_id": "a b"') == 6
    ours = [each for each in caplog.records if not each.name.startswith("httpx")]
    log = "\n".join(map(caplog.handler.format, ours))
    told = [said.out, said.err, log, *(each.text + str(each.headers) for each in answers)]
    assert "request a b to /predict failed" in log
    assert not any(secret in each for each in told for secret in (KEY, text))
