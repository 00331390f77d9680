"""The response cache: the same answers as without it, within its bytes, and of no other input."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.engine.devices import HostDevice
from serving.engine.engine import Engine
from serving.http.messages import HTTPError
from serving.http.metrics import to_prometheus
from serving.inference.executor import Executor
from serving.inference.model_server import ModelServer
from serving.inference.response_cache import Answer, ResponseCache, input_key
from serving.interface import Limits, Prediction, TextInput
from tests.support.fake_models import fake_model_info
from tests.support.model_servers import make_registry, run_scenario

SENTIMENT, LABELED = ("sentiment", "1"), ("classification",)
LONG = "very " * 20 + "dull"
# A value of every attribute that a text may have, each another than the default.
OTHER = {"ids": (5, 6), "max_tokens": 4, "truncation_side": "left"}
ROW = np.arange(4, dtype=np.int32)


@dataclass(eq=False)
class Version:
    """An engine, as far as a cache knows one."""


def an_answer(number: float = 1.0) -> Answer:
    return Answer(Prediction((number,), (number,)), ROW, False)


def test_answers_are_found_by_engine_and_text() -> None:
    responses, one, other = ResponseCache(10_000), Version(), Version()
    responses.keep(one, "a", an_answer(1))
    responses.keep(other, "a", an_answer(2))
    (found, missing) = responses.find(one, ["a", "b"])
    assert found is not None and found.value.scores == (1.0,) and missing is None
    (found,) = responses.find(other, ["a"])
    assert found is not None and found.value.scores == (2.0,)
    assert (responses.num_hits, responses.num_misses) == (2, 1)
    responses.forget_engine(one)
    assert responses.find(one, ["a"]) == [None]
    assert responses.find(other, ["a"]) != [None]


def test_every_attribute_of_an_input_tells_it_from_the_others() -> None:
    assert set(OTHER) == set(TextInput.__slots__)  # else the new one belongs into this test
    keys = {input_key("5 6"), input_key(TextInput("5 6"))}
    for name, value in OTHER.items():
        keys.add(input_key(TextInput("5 6", **{name: value})))
    assert len(keys) == 2 + len(OTHER)
    assert input_key(TextInput("a", max_tokens=4)) == input_key(TextInput("a", max_tokens=4))


def test_it_stays_within_its_bytes_and_drops_the_least_recent() -> None:
    engine = Version()
    one = ResponseCache(1 << 20)
    one.keep(engine, "0", an_answer())
    responses = ResponseCache(3 * one.num_bytes)
    for number in range(3):
        responses.keep(engine, str(number), an_answer())
    assert responses.num_bytes == 3 * one.num_bytes
    responses.find(engine, ["0"])
    responses.keep(engine, "3", an_answer())
    kept = [answer is not None for answer in responses.find(engine, ["0", "1", "2", "3"])]
    assert kept == [True, False, True, True]
    responses.keep(engine, "x" * 4 * one.num_bytes, an_answer())  # alone larger than the cache
    assert [answer is not None for answer in responses.find(engine, ["0"])] == [True]
    for text in ("0", "2", "3"):
        responses.keep(engine, text, an_answer())  # again: counted once
    assert responses.num_bytes == 3 * one.num_bytes
    responses.forget_engine(engine)
    assert responses.num_bytes == 0


def test_arrays_are_copied_so_that_no_batch_stays_in_memory_and_nobody_changes_them() -> None:
    responses, engine = ResponseCache(1 << 20), Version()
    batch = np.ones((64, 32), dtype=np.float32)
    responses.keep(engine, "a", Answer(batch[3], ROW[:2], False))
    (found,) = responses.find(engine, ["a"])
    assert found is not None and found.value.base is None and found.row.base is None
    with pytest.raises(ValueError, match="read-only"):
        found.value[0] = 2
    batch[3] = 7
    assert found.value.tolist() == [1.0] * 32


def test_no_bytes_are_no_cache_and_no_samples() -> None:
    responses, engine = ResponseCache(0), Version()
    responses.keep(engine, "a", an_answer())
    assert responses.find(engine, ["a"]) == [None]
    assert list(responses.metric_samples()) == []


@pytest.fixture(scope="module")
def engine(tiny_classifier: Path) -> Engine:
    return Engine.load(tiny_classifier)


def run(
    engine: Engine,
    scenario: Callable[[Executor], Awaitable[None]],
    limits: Limits | None = None,
    num_bytes: int = 1 << 20,
) -> None:
    async def run_with_executor() -> None:
        executor = Executor(
            lambda _: engine,
            lambda key: fake_model_info(*key),
            limits or Limits(),
            1 << 30,
            HostDevice(),
            num_bytes,
        )
        try:
            await scenario(executor)
        finally:
            await executor.close()

    asyncio.run(run_with_executor())


def test_what_was_answered_is_not_computed_again(engine: Engine) -> None:
    async def scenario(executor: Executor) -> None:
        texts = ["a warm film", LONG, "dull"]
        first = await executor.run_request(SENTIMENT, texts[:2], LABELED)
        num_rows = executor.batcher.total.num_rows
        again = await executor.run_request(SENTIMENT, texts[:2], LABELED)
        assert executor.batcher.total.num_rows == num_rows == 2
        assert again.values == first.values and again.truncated == first.truncated == [1]
        assert again.num_tokens == first.num_tokens
        mixed = await executor.run_request(SENTIMENT, [texts[2], *texts[:2]], LABELED)
        assert mixed.values[1:] == first.values and mixed.truncated == [2]
        assert executor.batcher.total.num_rows == 3
        assert executor.get_statistics(SENTIMENT).num_texts == 7
        page = to_prometheus(dict(executor.metric_samples()))
        assert "bertha_cache_hits_total 4\n" in page and "bertha_cache_misses_total 3\n" in page
        assert "bertha_cache_texts 3\n" in page
        assert f"bertha_cache_bytes {executor.responses.num_bytes}\n" in page
        await executor.run_request(SENTIMENT, texts, LABELED, use_cache=False)
        assert executor.batcher.total.num_rows == 6

    run(engine, scenario)


def test_other_ends_ids_and_numbers_of_tokens_are_other_inputs(engine: Engine) -> None:
    async def scenario(executor: Executor) -> None:
        inputs = [
            LONG,
            TextInput(LONG, max_tokens=5),
            TextInput(LONG, max_tokens=5, truncation_side="left"),
            TextInput(ids=[5, 6, 7]),
            "5 6 7",
        ]
        for text in inputs:  # the first time computed, the second kept
            for _ in range(2):
                result = await executor.run_request(SENTIMENT, [text], LABELED)
                assert result.rows[0].tolist() == engine.encode([text])[0][0].tolist()
                expected = np.array(engine.predict([text])[0].logits)
                assert np.allclose(result.values[0].logits, expected, atol=1e-5)
        assert executor.responses.num_hits == executor.responses.num_misses == len(inputs)

    run(engine, scenario)


def test_refusals_are_those_of_a_server_without_a_cache(engine: Engine) -> None:
    async def scenario(executor: Executor) -> None:
        await executor.run_request(SENTIMENT, ["dull", LONG], LABELED)
        num_texts = executor.get_statistics(SENTIMENT).num_texts
        bad_id = TextInput(ids=[10**6])
        for texts in (["dull", LONG], ["dull", bad_id]):
            with pytest.raises(HTTPError) as refused:
                await executor.run_request(SENTIMENT, texts, LABELED, truncate=False)
            with pytest.raises(HTTPError) as expected:
                await executor.run_request(SENTIMENT, texts, LABELED, False, use_cache=False)
            assert (refused.value.kind, refused.value.message) == (
                expected.value.kind,
                expected.value.message,
            )
        assert executor.get_statistics(SENTIMENT).num_texts == num_texts
        assert len(executor.responses._kept) == 2  # of errors nothing

    run(engine, scenario)


def test_a_hit_is_admitted_whatever_waits_and_a_failed_batch_is_not_kept(engine: Engine) -> None:
    async def scenario(executor: Executor) -> None:
        await executor.run_request(SENTIMENT, ["dull"], LABELED)
        await executor.batcher.close()
        await executor.run_request(SENTIMENT, ["dull"], LABELED)
        with pytest.raises(HTTPError) as refused:
            await executor.run_request(SENTIMENT, ["warm"], LABELED)
        assert refused.value.kind == "unready"
        assert executor.responses.find(engine, ["warm"]) == [None]
        with pytest.raises(HTTPError):  # a health check asks the model itself
            await executor.run_request(SENTIMENT, ["dull"], LABELED, use_cache=False)

    run(engine, scenario)


def test_an_evicted_version_takes_its_answers_along(engine: Engine) -> None:
    async def scenario(executor: Executor) -> None:
        await executor.run_request(SENTIMENT, ["dull"], LABELED)
        assert executor.responses.num_bytes > 0
        executor.cache.evict_models([SENTIMENT])
        assert executor.responses.num_bytes == 0
        late = asyncio.create_task(executor.run_request(SENTIMENT, ["dull"], LABELED))
        while not executor.batcher.num_waiting:
            await asyncio.sleep(0)
        executor.cache.evict_models([SENTIMENT])  # while it is computed
        await late
        assert executor.responses.num_bytes == 0

    run(engine, scenario)


def test_protocols_find_the_answers_of_each_other(tiny_classifier: Path, tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient, server: ModelServer) -> None:
        text = "a warm film"
        first = await client.post("/predict", json={"inputs": text, "raw_scores": True})
        num_rows = server.executor.batcher.total.num_rows
        second = await client.post("/predict", json={"inputs": text})
        third = await client.post("/predictions/tiny", content=text)
        assert first.status_code == second.status_code == third.status_code == 200
        assert first.json() != second.json()  # options are of the protocol
        assert server.executor.batcher.total.num_rows == num_rows
        unloaded = await client.post("/v2/repository/models/tiny/unload")
        assert unloaded.status_code == 403  # management is closed here
        await server.management.unload_model("tiny")
        assert server.executor.responses.num_bytes == 0

    run_scenario(
        make_registry(tmp_path, tiny_classifier), scenario, response_bytes=1 << 20, seconds=60
    )


def test_versions_that_are_compared_are_computed(tiny_classifier: Path, tmp_path: Path) -> None:
    registry = make_registry(tmp_path, tiny_classifier)

    async def scenario(_: httpx.AsyncClient, server: ModelServer) -> None:
        batcher = server.executor.batcher
        for _ in range(2):
            await server.predict("tiny:2", ["dull"])  # in memory, and asked for by its number
        before = batcher.total.num_rows
        for _ in range(6):
            await server.predict("tiny", ["dull"])
        trial = server.canary_router.metrics["tiny"]
        assert trial.live_metrics.requests + trial.canary_metrics.requests == 6
        assert trial.live_metrics.requests and trial.canary_metrics.requests
        assert batcher.total.num_rows == before + 6

    registry.deploy("tiny", registry.register(tiny_classifier, "tiny"), share=0.5)
    run_scenario(registry, scenario, response_bytes=1 << 20)
