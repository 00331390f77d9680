"""The model cache: each engine is loaded once, and the least recent goes when memory ends."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from serving.inference.model_cache import ModelCache, ModelKey
from trainers.models.card import BundleError
from trainers.storage.filesystem import StoreError

A, B, C = ("a", "1"), ("b", "1"), ("c", "1")


@dataclass(eq=False)
class Engine:
    """What a cache knows of an engine."""

    num_bytes: int = 10


class Loader:
    """Loads engines of 10 bytes, when it is free to; remembers which it was asked for."""

    def __init__(self) -> None:
        self.keys: list[ModelKey] = []
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None

    def __call__(self, key: ModelKey) -> Any:
        self.keys.append(key)
        assert self.free.wait(10)
        if self.error is not None:
            raise self.error
        return Engine()


def run(scenario: Callable[[ModelCache, Loader], Awaitable[None]], budget_bytes: int = 20) -> None:
    async def run_with_cache() -> None:
        loader = Loader()
        cache = ModelCache(loader, budget_bytes)
        try:
            await scenario(cache, loader)
        finally:
            cache.close()

    asyncio.run(run_with_cache())


def test_an_engine_is_cold_then_loading_then_ready() -> None:
    async def scenario(cache: ModelCache, loader: Loader) -> None:
        assert (cache.load_state(A), cache.get_loaded(A)) == ("cold", None)
        loader.free.clear()
        loading = asyncio.create_task(cache.get_or_load(A))
        await asyncio.sleep(0)
        assert (cache.load_state(A), cache.loaded_bytes) == ("loading", {})
        loader.free.set()
        engine = await loading
        assert (cache.load_state(A), cache.loaded_bytes) == ("ready", {A: 10})
        assert cache.get_loaded(A) is await cache.get_or_load(A) is engine
        assert loader.keys == [A]

    run(scenario)


def test_those_who_ask_at_once_share_a_load_and_one_who_leaves_stops_it_for_nobody() -> None:
    async def scenario(cache: ModelCache, loader: Loader) -> None:
        loader.free.clear()
        first, second, third = (asyncio.create_task(cache.get_or_load(A)) for _ in range(3))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        loader.free.set()
        assert await second is await third is cache.get_loaded(A)
        assert first.cancelled() and loader.keys == [A]

    run(scenario)


def test_a_load_that_fails_is_told_to_all_and_tried_again_when_that_is_forgotten() -> None:
    async def scenario(cache: ModelCache, loader: Loader) -> None:
        loader.error = BundleError("a byte is another one")
        for _ in range(3):
            with pytest.raises(BundleError, match="a byte is another one"):
                await cache.get_or_load(A)
            assert cache.load_state(A) == "cold"
        assert loader.keys == [A], "it is not read for every request"
        loader.error = None
        assert await cache.get_or_load(B)
        cache.forget_failures()
        assert await cache.get_or_load(A)
        assert loader.keys == [A, B, A]

    run(scenario)


def test_a_store_that_fails_is_asked_again_at_once() -> None:
    async def scenario(cache: ModelCache, loader: Loader) -> None:
        for error in (OSError("the disk is gone"), StoreError("slow down")):
            loader.error = error
            with pytest.raises(type(error), match=str(error)):
                await cache.get_or_load(A)
        loader.error = None
        assert await cache.get_or_load(A)
        assert loader.keys == [A, A, A]

    run(scenario)


def test_the_least_recently_used_goes_first() -> None:
    async def scenario(cache: ModelCache, _: Loader) -> None:
        for key in (A, B):
            await cache.get_or_load(key)
        assert set(cache.loaded_bytes) == {A, B}, "20 of 20 bytes fit"
        cache.get_loaded(A)
        await cache.get_or_load(C)
        assert set(cache.loaded_bytes) == {A, C}

    run(scenario)


def test_pinned_engines_and_the_newest_stay_beyond_the_budget(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(cache: ModelCache, _: Loader) -> None:
        cache.pinned = [A]
        for key in (A, B, C):
            await cache.get_or_load(key)
        assert set(cache.loaded_bytes) == {A, C}

    with caplog.at_level(logging.WARNING):
        run(scenario, budget_bytes=15)
    assert caplog.messages == ["the models that must stay take 20 of 15 bytes"] * 2


def test_what_is_evicted_is_loaded_again() -> None:
    async def scenario(cache: ModelCache, loader: Loader) -> None:
        await cache.get_or_load(A)
        cache.evict_models([A, B])
        assert (cache.load_state(A), cache.loaded_bytes) == ("cold", {})
        await cache.get_or_load(A)
        assert loader.keys == [A, A]

    run(scenario)
