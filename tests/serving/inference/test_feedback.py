"""Feedback: right answers, checked against the model, in files that training reads."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.http.keys import ApiKeys, add_key, load_keys
from serving.http.messages import HTTPError
from serving.inference.feedback import RecentTexts, check_answer
from serving.inference.model_server import ModelServer
from serving.registry.registry import Registry
from tests.support.fake_models import fake_model_info
from tests.support.model_servers import make_registry, run_scenario, send_request
from trainers.__main__ import main as train


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, tiny_classifier: Path) -> Registry:
    return make_registry(tmp_path_factory.mktemp("feedback") / "registry", tiny_classifier)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_without_a_directory_nothing_is_taken(registry: Registry) -> None:
    response = send_request(
        registry, "POST", "/feedback", json={"text": "a film", "label": "positive"}
    )
    assert response.status_code == 403 and "--feedback DIR" in response.json()["error"]


def test_feedback_with_its_text_is_kept_for_the_version_that_is_named(
    registry: Registry, tmp_path: Path
) -> None:
    place = tmp_path / "data"

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        for text, model in (("ein Film: gut\n", None), ("dull", "tiny:1")):
            body = {"text": text, "label": "positive", "model": model}
            headers = {"x-request-id": "of-feedback"}
            answer = await client.post("/feedback", json=body, headers=headers)
            assert answer.json() == {"kept": True, "model": "tiny", "version": "1"}

    run_scenario(registry, scenario, feedback=place)
    rows = read_rows(place / "feedback.jsonl")
    assert [(row["text"], row["label"], row["model"]) for row in rows] == [
        ("ein Film: gut\n", "positive", "tiny"),
        ("dull", "positive", "tiny"),
    ]
    assert oct(place.stat().st_mode)[-3:] == "700"
    assert oct((place / "feedback.jsonl").stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": "a", "label": "negativ"}, "label = 'negativ': expected one of negative, pos"),
        ({"text": "a", "label": ["negative", "positive"]}, "label holds 2 labels"),
        ({"text": "a", "label": []}, "label holds 0 labels"),
        ({"text": "a", "label": 1}, "label = 1: expected one of"),
        ({"text": " ", "label": "positive"}, "text 1 of text is empty"),
        ({"label": "positive"}, "give either text, or request_id"),
        ({"label": "positive", "text": "a", "request_id": "1"}, "give either text, or"),
        ({"label": "positive", "request_id": "1", "model": "tiny"}, "leave it out"),
        ({"label": "positive", "request_id": "nobody"}, "no such request is remembered"),
        ({"text": "a"}, "label"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    registry: Registry, tmp_path: Path, body: dict[str, Any], words: str
) -> None:
    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        refused = await client.post("/feedback", json=body)
        assert refused.status_code == 400 and words in refused.json()["error"]
        unknown = await client.post(
            "/feedback", json={"text": "a", "label": "positive", "model": "tniy"}
        )
        assert unknown.status_code == 404

    run_scenario(registry, scenario, feedback=tmp_path / "data")
    assert not (tmp_path / "data" / "feedback.jsonl").exists()


def test_an_answer_of_another_replica_is_found_by_its_request(
    registry: Registry, tmp_path: Path
) -> None:
    async def asking(client: httpx.AsyncClient, _: ModelServer) -> None:
        answered = await client.post("/predict", json={"inputs": ["warm", "a dull plot"]})
        request_id = answered.headers["x-request-id"]

        async def other(client: httpx.AsyncClient, _: ModelServer) -> None:
            body = {"request_id": request_id, "index": 1, "label": "negative"}
            kept = await client.post("/feedback", json=body)
            assert kept.json() == {"kept": True, "model": "tiny", "version": "1"}
            beyond = await client.post("/feedback", json=body | {"index": 2})
            assert beyond.status_code == 400
            assert "index = 2: that request had 2 texts" in beyond.json()["error"]
            prefix = await client.post("/feedback", json=body | {"request_id": request_id[:-1]})
            assert prefix.status_code == 400

        with ThreadPoolExecutor(1) as pool:
            pool.submit(run_scenario, registry, other, feedback=tmp_path / "data").result()

    run_scenario(registry, asking, feedback=tmp_path / "data")
    (row,) = read_rows(tmp_path / "data" / "feedback.jsonl")
    assert (row["text"], row["label"]) == ("a dull plot", "negative")
    assert not list((tmp_path / "data" / "recent").iterdir())  # replicas that end forget


def test_a_request_of_another_key_and_one_of_token_ids_are_not_told(
    registry: Registry, tmp_path: Path
) -> None:
    one, other = (add_key(tmp_path / "keys", name, ("inference",)) for name in ("one", "other"))

    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        def headers(key: str) -> dict[str, str]:
            return {"authorization": f"Bearer {key}", "x-request-id": "mine"}

        asked = await client.post("/predict", json={"inputs": "warm"}, headers=headers(one))
        assert asked.status_code == 200
        body = {"request_id": "mine", "label": "positive"}
        assert (
            await client.post("/feedback", json=body, headers=headers(other))
        ).status_code == 400
        assert (await client.post("/feedback", json=body, headers=headers(one))).status_code == 200
        body = {"model": "tiny", "input": [[5, 6]]}
        named = headers(one) | {"x-request-id": "ids"}
        assert (await client.post("/classify", json=body, headers=named)).status_code == 200
        body = {"request_id": "ids", "label": "positive"}
        refused = await client.post("/feedback", json=body, headers=headers(one))
        assert refused.status_code == 400 and "by token ids" in refused.json()["error"]

    keys = ApiKeys(load_keys(tmp_path / "keys"))
    run_scenario(registry, scenario, keys=keys, feedback=tmp_path / "data")


def test_models_have_files_of_their_own(
    registry: Registry, tiny_classifier: Path, tmp_path: Path
) -> None:
    both = make_registry(tmp_path / "registry", tiny_classifier, "one")
    both.deploy("two", both.register(tiny_classifier, "two"))

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        for model in ("two", "one", "two"):
            body = {"text": model, "label": "positive", "model": model}
            assert (await client.post("/feedback", json=body)).status_code == 200

    run_scenario(both, scenario, feedback=tmp_path / "data")
    assert [row["text"] for row in read_rows(tmp_path / "data" / "feedback.jsonl")] == ["two"] * 2
    assert [row["text"] for row in read_rows(tmp_path / "data" / "feedback-one.jsonl")] == ["one"]


def test_files_are_bounded(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        monkeypatch.setattr(server._feedback, "_max_bytes", 400)
        body = {"text": "x" * 100, "label": "positive"}
        statuses = [(await client.post("/feedback", json=body)).status_code for _ in range(4)]
        assert statuses[0] == 200 and statuses[-1] == 503
        full = await client.post("/feedback", json=body)
        assert "feedback.jsonl is full" in full.json()["error"]

    run_scenario(registry, scenario, feedback=tmp_path / "data")
    assert (tmp_path / "data" / "feedback.jsonl").stat().st_size <= 400


def test_recent_texts_are_bounded_and_the_newest_are_found(tmp_path: Path) -> None:
    recent = RecentTexts(tmp_path, max_bytes=1000)
    for number in range(100):
        recent.append({"request_id": str(number), "key": "", "texts": ["x" * 50]})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    assert recent.find("0", "") is None
    assert recent.find("99", "") == {"request_id": "99", "key": "", "texts": ["x" * 50]}
    recent.append({"request_id": "a", "key": "", "texts": ["x" * 2000]})  # larger than a file
    assert recent.find("a", "") is None
    recent.close()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_keeps_nobody_from_an_answer(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        monkeypatch.setattr(os, "write", fail)
        answered = await client.post("/predict", json={"inputs": "warm"})
        assert answered.status_code == 200

    run_scenario(registry, scenario, feedback=tmp_path / "data")


def test_answers_are_those_that_training_reads() -> None:
    topics, stars = fake_model_info("topics"), fake_model_info("stars")
    assert check_answer(("music", "plot"), topics) == ["plot", "music"]
    assert check_answer("cast", topics) == ["cast"]
    assert check_answer(4, stars) == 4.0
    for answer in ("4", float("nan"), float("inf"), 10**400, ("4",)):
        with pytest.raises(HTTPError, match="answers a number"):
            check_answer(answer, stars)


def test_training_reads_what_was_kept(
    registry: Registry, tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        for number in range(40):
            label = ("negative", "positive")[number % 2]
            body = {"text": f"a {('dull', 'warm')[number % 2]} film {number}", "label": label}
            assert (await client.post("/feedback", json=body)).status_code == 200

    place = tmp_path / "data"
    run_scenario(registry, scenario, feedback=place)
    words = [f"data.source={place / 'feedback.jsonl'}", f"model.name={tiny_bert}"]
    assert train(["csv.yaml", *words, "batch.max_length=16", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "negative" in said and "positive" in said
