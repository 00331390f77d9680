"""Names, versions and canaries over a registry: what answers, and when that changes."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serving.engine.engine import Engine
from serving.http.messages import HTTPError
from serving.inference.model_server import ModelServer
from serving.registry.canary_rule import CanaryRule
from serving.registry.registry import Registry
from tests.support.model_servers import make_registry, run_scenario
from tests.support.tiny_bundle import write_tiny_bundle
from trainers.models.card import CARD_FILE, read_card, serialize_card
from trainers.storage.atomic import hash_files

TEXTS = ["a warm film", "dull", "good cast and a plot"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    return write_tiny_bundle(tmp_path_factory.mktemp("one") / "bundle", tiny_bert)


def altered(bundle: Path, target: Path, factor: float) -> Path:
    """The bundle with the weights of its classifier multiplied, sealed as if trained so."""
    target.mkdir()
    for path in bundle.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"] * factor
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / CARD_FILE).unlink()
    card = read_card(bundle).model_copy(update={"files": hash_files(target)})
    (target / CARD_FILE).write_text(serialize_card(card))
    return target


@pytest.fixture(scope="module")
def opposite(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says the other label."""
    return altered(bundle, tmp_path_factory.mktemp("two") / "bundle", -1.0)


@pytest.fixture(scope="module")
def broken(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that loads, and answers no number."""
    return altered(bundle, tmp_path_factory.mktemp("three") / "bundle", float("nan"))


def labels(engine: Engine, texts: list[str] = TEXTS) -> list[int]:
    return [int(np.argmax(each.scores)) for each in engine.predict(texts)]


async def said(
    server: ModelServer, model: str | None = None, texts: list[str] = TEXTS
) -> list[int]:
    answer = await server.predict(model, texts)
    return [int(np.argmax(value.scores)) for value in answer.values]


def test_a_bundle_has_an_opposite(bundle: Path, opposite: Path) -> None:
    assert all(torch.isfinite(torch.tensor(labels(Engine.load(bundle)))))
    assert labels(Engine.load(bundle)) != labels(Engine.load(opposite))


def test_names_versions_and_aliases(bundle: Path, opposite: Path, tmp_path: Path) -> None:
    registry = make_registry(tmp_path, bundle)
    registry.register(opposite, "tiny")
    registry.set_alias("tiny", "best", "2")
    one, two = labels(Engine.load(bundle)), labels(Engine.load(opposite))

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        assert (
            await said(server) == await said(server, "tiny") == await said(server, "tiny:1") == one
        )
        assert await said(server, "tiny:2") == await said(server, "tiny@best") == two
        assert server.get_info("tiny@best").version == "2"
        assert server.get_info("tiny@best").aliases == ("best",)
        assert [(info.name, info.version) for info in server.list_models()] == [
            ("tiny", "1"),
            ("tiny", "2"),
        ]
        assert server.get_statistics("tiny:1").num_texts >= 9
        for reference, words in (("tniy", "did you mean tiny"), ("tiny:9", "no such version")):
            with pytest.raises(HTTPError, match=words) as refused:
                await server.predict(reference, ["a"])
            assert refused.value.kind == "no-model"

    run_scenario(registry, scenario)


def test_a_deployed_version_answers_and_a_rollback_undoes_it(
    bundle: Path, opposite: Path, tmp_path: Path
) -> None:
    registry = make_registry(tmp_path, bundle)
    one, two = labels(Engine.load(bundle)), labels(Engine.load(opposite))

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        assert await said(server) == one
        registry.deploy("tiny", registry.register(opposite, "tiny"))
        await server.refresh()
        assert await said(server) == two
        registry.rollback("tiny")
        await server.refresh()
        assert await said(server) == one

    run_scenario(registry, scenario)


def test_a_live_version_that_does_not_answer_is_not_adopted(
    bundle: Path, broken: Path, opposite: Path, tmp_path: Path
) -> None:
    registry = make_registry(tmp_path, bundle)
    one, two = labels(Engine.load(bundle)), labels(Engine.load(opposite))

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        registry.deploy("tiny", registry.register(broken, "tiny"))
        await server.refresh()
        await server.refresh()
        assert await said(server) == one
        registry.deploy("tiny", registry.register(opposite, "tiny"))
        await server.refresh()
        assert await said(server) == two

    run_scenario(registry, scenario)


async def loaded(server: ModelServer, key: tuple[str, str]) -> None:
    while server.executor.cache.load_state(key) != "ready":
        await server.predict(None, ["a film"])
        await asyncio.sleep(0.01)


def test_a_canary_gets_its_share(bundle: Path, opposite: Path, tmp_path: Path) -> None:
    registry = make_registry(tmp_path, bundle)
    registry.deploy("tiny", registry.register(opposite, "tiny"), share=0.25)
    one, two = labels(Engine.load(bundle), ["dull"]), labels(Engine.load(opposite), ["dull"])
    assert one != two

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        await loaded(server, ("tiny", "2"))
        before = server.canary_router.metrics["tiny"].canary_metrics.requests
        answers = [await said(server, None, ["dull"]) for _ in range(200)]
        assert abs(answers.count(two) - 50) <= 2
        tally = server.canary_router.metrics["tiny"]
        assert tally.canary_metrics.requests - before == answers.count(two)
        assert [await said(server, "tiny:1", ["dull"]) for _ in range(20)].count(one) == 20

    run_scenario(registry, scenario)


def test_a_canary_that_fails_costs_nobody_an_answer(
    bundle: Path, broken: Path, tmp_path: Path
) -> None:
    registry = make_registry(tmp_path, bundle)
    registry.deploy("tiny", registry.register(broken, "tiny"), share=0.5)
    one = labels(Engine.load(bundle))

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        for _number in range(40):
            assert await said(server) == one
            await asyncio.sleep(0.005)
        tally = server.canary_router.metrics["tiny"]
        assert tally.canary_metrics.errors == tally.canary_metrics.requests > 0
        assert tally.live_metrics.errors == 0

    run_scenario(registry, scenario)


def test_a_canary_is_loaded_once_however_many_ask(
    bundle: Path, opposite: Path, tmp_path: Path
) -> None:
    registry = make_registry(tmp_path, bundle)
    registry.deploy("tiny", registry.register(opposite, "tiny"), share=1.0)
    weights = tmp_path / "tiny" / "versions" / "2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")  # it cannot be loaded

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        await asyncio.gather(*(server.predict(None, ["a film"]) for _ in range(16)))
        while server.executor.cache.load_state(("tiny", "2")) == "loading":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert server.canary_router.metrics["tiny"].canary_metrics.errors == 1

    run_scenario(registry, scenario)


def test_a_shadow_is_compared_and_never_heard(bundle: Path, opposite: Path, tmp_path: Path) -> None:
    registry = make_registry(tmp_path, bundle)
    version = registry.register(opposite, "tiny")
    registry.deploy("tiny", version, shadow=True, rule=CanaryRule(min_agreement=0.9))
    one, two = labels(Engine.load(bundle)), labels(Engine.load(opposite))
    differing = sum(a != b for a, b in zip(one, two, strict=True))

    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        await loaded(server, ("tiny", "2"))
        tally = server.canary_router.metrics["tiny"]
        while server.canary_router.num_shadow_requests:
            await asyncio.sleep(0.01)
        pairs, disagreed = tally.num_pairs, tally.num_disagreed
        for _number in range(10):
            assert await said(server) == one
        while server.canary_router.num_shadow_requests:
            await asyncio.sleep(0.01)
        assert tally.num_pairs - pairs == 10 * len(TEXTS)
        assert tally.num_disagreed - disagreed == 10 * differing
        (said_of,) = (await client.get("/canaries")).json()
        assert (said_of["live"]["version"], said_of["canary"]["version"]) == ("1", "2")
        assert said_of["canary"]["errors"] == 0 < said_of["canary"]["p95_ms"]
        agreement = said_of["agreement"]
        assert (agreement["texts"], agreement["differ"]) == (tally.num_pairs, tally.num_disagreed)
        assert agreement["labels"] == ["negative", "positive"]
        assert sum(map(sum, agreement["live_by_canary"])) == tally.num_pairs

    run_scenario(registry, scenario)


def test_memory_is_bounded_and_the_least_recent_goes(
    bundle: Path, opposite: Path, tmp_path: Path
) -> None:
    registry = make_registry(tmp_path, bundle)
    for name in ("b", "c"):
        registry.deploy(name, registry.register(opposite, name))
    size = Engine.load(bundle).num_bytes

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        pool = server.executor.cache
        for name in ("b", "c", "b"):
            await said(server, name)
            assert sum(pool.loaded_bytes.values()) <= 2.5 * size
        assert pool.load_state(("tiny", "1")) == "ready"  # the default model stays
        assert (pool.load_state(("b", "1")), pool.load_state(("c", "1"))) == ("ready", "cold")

    registry.make_default("tiny")
    run_scenario(registry, scenario, budget_bytes=int(2.5 * size))


def test_an_empty_registry_says_what_to_do(tmp_path: Path) -> None:
    async def scenario(_: httpx.AsyncClient, __: ModelServer) -> None:
        raise AssertionError

    with pytest.raises(Exception, match="no model is live; deploy one first"):
        run_scenario(Registry.open(str(tmp_path)), scenario)
