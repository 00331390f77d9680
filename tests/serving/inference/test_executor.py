"""The executor: answers and their statistics, and for every failure the kind of HTTP error."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serving.engine.devices import HostDevice
from serving.engine.engine import Engine
from serving.http.messages import HTTPError, request_deadline
from serving.http.metrics import to_prometheus
from serving.inference.executor import FEW_CHARACTERS, Executor
from serving.inference.model_cache import ModelKey
from serving.interface import Limits, ModelInfo
from tests.support.fake_gpu import CARD, FakeGPU
from tests.support.fake_models import fake_model_info
from tests.support.tiny_bundle import write_linear_bundle
from trainers.models.card import BundleError

NUMBERS, REVIEWS, NOWHERE = ("stars", "1"), ("sentiment", "2"), ("topics", "3")
LABELED = ("classification", "multi-label")
INFINITE = "3e38 0"  # twice that is no number of float32
Scenario = Callable[[Executor], Awaitable[None]]


@pytest.fixture(scope="module")
def engines(tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    numbers = write_linear_bundle(tmp_path_factory.mktemp("linear") / "bundle", [2.0, -1.0])
    return {"stars": Engine.load(numbers), "sentiment": Engine.load(tiny_classifier)}


@pytest.fixture
def run(engines: dict[str, Engine]) -> Callable[..., None]:
    """Run a scenario with an executor of those engines."""

    def load(key: ModelKey) -> Engine:
        if key[0] not in engines:
            raise BundleError(f"no bundle of {key[0]}")
        return engines[key[0]]

    def get_info(key: ModelKey) -> ModelInfo:
        return fake_model_info(*key)

    def run_scenario(scenario: Scenario, limits: Limits | None = None) -> None:
        async def run_with_executor() -> None:
            executor = Executor(load, get_info, limits or Limits(), 1 << 30, HostDevice())
            try:
                await scenario(executor)
            finally:
                await executor.close()

        asyncio.run(run_with_executor())

    return run_scenario


async def refusal(work: Awaitable[object]) -> HTTPError:
    with pytest.raises(HTTPError) as refused:
        await work
    return refused.value


def test_texts_are_answered_in_order_and_counted(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        result = await executor.run_request(NUMBERS, ["3 1", "0 1"], ("regression",))
        assert [value.scores for value in result.values] == [(5.0,), (-1.0,)]
        assert (result.model.name, result.num_tokens) == ("stars", [2, 2])
        await executor.run_request(NUMBERS, ["1 1"], ("regression",))
        done = executor.get_statistics(NUMBERS)
        assert (done.num_texts, done.num_answered, done.num_failed) == (3, 2, 0)
        assert done.num_executions == 2
        assert 0 < done.queue_seconds < done.seconds
        assert done.compute_seconds == pytest.approx(done.seconds - done.queue_seconds)
        assert abs(done.last_inference - time.time()) < 60
        assert executor.queue_totals() == (done.queue_seconds, 2)
        assert executor.get_statistics(REVIEWS).num_answered == 0

    run(scenario)


def test_a_model_of_another_task_says_what_it_is_for(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        error = await refusal(executor.run_request(NUMBERS, ["3 1"], LABELED))
        assert (error.kind, error.message) == (
            "wrong-task",
            "stars:1 is a model for regression; this call is for classification or multi-label",
        )

    run(scenario)


def test_a_model_that_cannot_be_loaded_is_unready(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        error = await refusal(executor.run_request(NOWHERE, ["a film"], LABELED))
        assert (error.kind, error.message) == (
            "unready",
            "topics:3 cannot be loaded: no bundle of topics",
        )
        with pytest.raises(BundleError):
            await executor.preload(NOWHERE)
        assert not await executor.is_healthy(NOWHERE)

    run(scenario)


def test_texts_that_are_too_long_are_cut_or_refused(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        texts = ["dull", "very " * 20 + "dull"]
        result = await executor.run_request(REVIEWS, texts, LABELED)
        assert result.num_tokens == [3, 16]
        error = await refusal(executor.run_request(REVIEWS, texts, LABELED, truncate=False))
        assert error.kind == "too-long"
        assert error.message.startswith("1 of 2 texts longer than 16 tokens; shorten")
        await executor.run_request(REVIEWS, texts[:1], LABELED, truncate=False)

    run(scenario)


def test_many_characters_are_encoded_as_few_are(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        few, _ = await executor.encode_texts(REVIEWS, ["a dull film"])
        many, cut = await executor.encode_texts(REVIEWS, ["a dull film" + " " * FEW_CHARACTERS] * 2)
        assert [many[row].tolist() for row in (0, 1)] == [few[0].tolist()] * 2 and not cut

    run(scenario)


def test_a_text_that_the_encoder_cannot_read_is_unreadable(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        error = await refusal(executor.run_request(NUMBERS, ["3"], ("regression",)))
        assert (error.kind, "holds 1 numbers" in error.message) == ("unreadable", True)

    run(scenario)


def test_a_model_that_fails_is_counted_and_probed_before_it_is_trusted_again(
    run: Callable[..., None], engines: dict[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(executor: Executor) -> None:
        await executor.preload(NUMBERS)
        error = await refusal(executor.run_request(NUMBERS, [INFINITE], ("regression",)))
        assert (error.kind, error.message) == ("failed", "the model failed: FloatingPointError")
        assert executor.get_statistics(NUMBERS).num_failed == 1
        monkeypatch.setattr(Engine, "probe_text", INFINITE)
        assert not await executor.is_healthy(NUMBERS)
        monkeypatch.undo()
        assert await executor.is_healthy(NUMBERS)
        monkeypatch.setattr(Engine, "probe_text", INFINITE)
        assert await executor.is_healthy(NUMBERS), "the probe's answer is remembered"

    run(scenario)


def test_an_overloaded_model_is_healthy_and_is_loaded_all_the_same(
    run: Callable[..., None],
) -> None:
    async def scenario(executor: Executor) -> None:
        error = await refusal(executor.run_request(NUMBERS, ["3 1"], ("regression",)))
        assert (error.kind, error.retry_after_seconds) == ("overloaded", 0)
        assert await executor.is_healthy(NUMBERS)
        await executor.preload(NUMBERS)  # not counted among the requests
        assert executor.get_statistics(NUMBERS).num_executions == 1

    run(scenario, Limits(max_waiting_requests=0))


def test_a_deadline_that_passed_is_late_and_an_end_unready(run: Callable[..., None]) -> None:
    async def scenario(executor: Executor) -> None:
        token = request_deadline.set(time.perf_counter() - 1)
        error = await refusal(executor.run_request(NUMBERS, ["3 1"], ("regression",)))
        request_deadline.reset(token)
        assert (error.kind, error.retry_after_seconds) == ("late", None)
        assert executor.get_statistics(NUMBERS).num_failed == 0
        await executor.batcher.close()
        error = await refusal(executor.run_request(NUMBERS, ["3 1"], ("regression",)))
        assert (error.kind, error.retry_after_seconds) == ("unready", 1)

    run(scenario)


def test_metrics_are_of_this_replica_and_of_each_version(
    run: Callable[..., None], engines: dict[str, Engine]
) -> None:
    async def scenario(executor: Executor) -> None:
        await executor.run_request(NUMBERS, ["3 1", "0 1"], ("regression",))
        await refusal(executor.run_request(NUMBERS, [INFINITE], ("regression",)))
        samples = dict(executor.metric_samples())
        assert samples["bertha_batches_total", ()] == 2
        assert samples["bertha_batch_rows_total", ()] == 3
        assert samples["bertha_tokens_total", ()] == 6
        assert samples["bertha_waiting_requests", ()] == 0
        labels = (("model", "stars"), ("version", "1"))
        of_version = {name: value for (name, of), value in samples.items() if of == labels}
        done = executor.get_statistics(NUMBERS)
        assert of_version == {
            "bertha_texts_total": 2,
            "bertha_answers_total": 1,
            "bertha_failures_total": 1,
            "bertha_model_seconds_total": done.seconds,
            "bertha_queue_seconds_total": done.queue_seconds,
            "bertha_model_loaded": 1,
            "bertha_model_bytes": engines["stars"].num_bytes,
        }

    run(scenario)


def test_metrics_name_the_device_and_its_memory(
    engines: dict[str, Engine],
) -> None:
    def load(key: ModelKey) -> Engine:
        return engines[key[0]]

    async def gather() -> list[str]:
        lines = []
        for device in (HostDevice(), FakeGPU("cuda")):
            executor = Executor(load, lambda key: fake_model_info(*key), Limits(), 1 << 30, device)
            lines += to_prometheus(dict(executor.metric_samples())).splitlines()
            await executor.close()
        return [line for line in lines if line.startswith("bertha_device")]

    on_cpu, on_gpu, memory = asyncio.run(gather())
    assert on_cpu.startswith('bertha_device{device="cpu",name="') and on_cpu.endswith("} 1")
    assert on_gpu == f'bertha_device{{device="cuda",name="{CARD}"}} 1'
    assert memory == f'bertha_device_memory_bytes{{device="cuda"}} {5 << 20}'
