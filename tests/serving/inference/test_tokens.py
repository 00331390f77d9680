"""Tokens, texts of tokens and vectors of tokens, by HTTP from a bundle, off the event loop."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.engine.engine import Engine
from serving.inference.model_server import ModelServer
from serving.optimize.export_embedder import write_embedder_bundle
from serving.registry.registry import Registry
from tests.support.model_servers import make_registry, run_scenario, send_request
from tests.support.tiny import write_tiny_bert
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import read_card
from trainers.models.config import ModelError

TEXTS = ["a warm film", "dull \U0001f3ac", "x" * 5000]
PROMPTS = {"query": "good film ", "empty": ""}


def prompted_bert(place: Path, prompts: Any) -> Path:
    """A tiny BERT as sentence-transformers saves one."""
    bert = write_tiny_bert(place)
    (bert / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return bert


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prompted")
    write_embedder_bundle(prompted_bert(place / "bert", PROMPTS), place / "bundle", max_length=16)
    return place / "bundle"


@pytest.fixture(scope="module")
def registry(embedder: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return make_registry(tmp_path_factory.mktemp("registry"), embedder, "mini")


@pytest.mark.parametrize("special", [True, False])
def test_tokens_are_told_off_the_event_loop(
    registry: Registry, embedder: Path, special: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    tokenize = Engine.tokenize

    def noted(self: Engine, *arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return tokenize(self, *arguments)

    monkeypatch.setattr(Engine, "tokenize", noted)
    body = {"inputs": TEXTS, "add_special_tokens": special}
    found = send_request(registry, "POST", "/tokenize", json=body).json()
    expected = tokenize(Engine.load(embedder), TEXTS, special)
    assert [[each["id"] for each in of_text] for of_text in found] == [
        [token.id for token in of_text] for of_text in expected
    ]
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


def test_ids_of_tokenize_are_read_by_every_other_call(registry: Registry, embedder: Path) -> None:
    engine = Engine.load(embedder)

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        tokens = (await client.post("/tokenize", json={"inputs": "a warm film"})).json()[0]
        ids = [each["id"] for each in tokens]
        assert (await client.post("/decode", json={"ids": ids})).json() == ["a warm film"]
        vllm = (await client.post("/detokenize", json={"tokens": ids[1:-1]})).json()
        assert vllm == {"prompt": "a warm film"}
        vector = (await client.post("/embed", json={"inputs": ids})).json()[0]
        np.testing.assert_allclose(vector, engine.predict(["a warm film"])[0], atol=1e-6)
        refused = await client.post("/decode", json={"ids": [10**6]})
        assert refused.status_code == 422 and "vocabulary has" in refused.json()["error"]

    run_scenario(registry, scenario)


def test_counters_stand_below_the_prefixes_of_clients(registry: Registry) -> None:
    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        for path in ("/metrics", "/infinity/metrics", "/tei/mini/metrics"):
            assert "bertha_batches_total" in (await client.get(path)).text

    run_scenario(registry, scenario)


def test_vectors_of_tokens_are_computed_apart(registry: Registry, embedder: Path) -> None:
    engine = Engine.load(embedder)

    async def scenario(client: httpx.AsyncClient, _: ModelServer) -> None:
        answer = await client.post("/embed_all", json={"inputs": ["a warm film", "dull " * 50]})
        first, long = map(np.array, answer.json())
        mean = first.mean(axis=0)
        pooled = engine.predict(["a warm film"])[0]
        np.testing.assert_allclose(mean / np.linalg.norm(mean), pooled, atol=1e-6)
        assert len(long) == 16 and answer.headers["x-bertha-truncated"] == "1"
        whole = {"inputs": "dull " * 50, "truncate": False}
        assert (await client.post("/embed_all", json=whole)).status_code == 413
        many = await client.post("/embed_all", json={"inputs": ["a"] * 32})
        assert len(many.json()) == 32

    run_scenario(registry, scenario)


def test_more_vectors_than_an_answer_holds_are_refused(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.inference.model_server.MAX_TOKEN_VECTORS", 7)
    response = send_request(registry, "POST", "/embed_all", json={"inputs": ["a film", "plot b"]})
    assert response.status_code == 413
    assert "8 tokens" in response.json()["error"] and "at most 7" in response.json()["error"]


def test_the_prompts_of_sentence_transformers_are_kept(registry: Registry, embedder: Path) -> None:
    assert read_card(embedder).prompts == {"query": "good film "}
    engine = Engine.load(embedder)

    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        assert (await client.get("/info")).json()["prompts"] == {"query": "good film "}
        body = {"inputs": "a warm plot", "prompt_name": "query"}
        found = (await client.post("/embed", json=body)).json()
        expected = engine.predict(["good film a warm plot"])
        np.testing.assert_allclose(found, expected, atol=1e-6)

    run_scenario(registry, scenario)


@pytest.mark.parametrize("prompts", [["query"], {"query": 5}])
def test_prompts_that_are_no_texts_are_named(prompts: Any, tmp_path: Path) -> None:
    bert = prompted_bert(tmp_path / "bert", prompts)
    with pytest.raises(ModelError, match="`prompts` in config_sentence_transformers"):
        write_embedder_bundle(bert, tmp_path / "bundle", max_length=16)


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path / "bundle", [1.0, 2.0])
    registry = make_registry(tmp_path / "registry", bundle)
    for path, body in (("/tokenize", {"inputs": "1 2"}), ("/decode", {"ids": [1]})):
        response = send_request(registry, "POST", path, json=body)
        assert response.status_code == 422 and "knows no tokens" in response.json()["error"]
