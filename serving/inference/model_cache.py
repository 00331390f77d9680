"""Loaded engines within a memory budget, evicted least recently used first.

cache = ModelCache(load=lambda key: Engine.load(registry.fetch_bundle(*key)), budget_bytes=4 << 30)
engine = await cache.get_or_load(("sentiment", "3"))
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from serving.engine.engine import Engine
from trainers.models.card import BundleError

ModelKey = tuple[str, str]  # name and version

log = logging.getLogger(__name__)


class ModelCache:
    """Engines by name and version. Belongs to one event loop; loads in its own thread.

    on_evict: is told of each engine that is put out.
    """

    def __init__(
        self,
        load: Callable[[ModelKey], Engine],
        budget_bytes: int,
        on_evict: Callable[[Engine], None] = lambda _: None,
    ) -> None:
        self._load, self._budget_bytes, self._on_evict = load, budget_bytes, on_evict
        self._loaded: OrderedDict[ModelKey, Engine] = OrderedDict()  # the least recent first
        self._loading: dict[ModelKey, asyncio.Task[Engine]] = {}
        self._failures: dict[ModelKey, BundleError] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self.pinned: Collection[ModelKey] = ()  # never put out

    @property
    def loaded_bytes(self) -> dict[ModelKey, int]:
        """Bytes of each engine in memory."""
        return {key: engine.num_bytes for key, engine in self._loaded.items()}

    def load_state(self, key: ModelKey) -> str:
        """Return "ready", "loading" or "cold"."""
        if key in self._loaded:
            return "ready"
        return "loading" if key in self._loading else "cold"

    def is_loaded(self, key: ModelKey, engine: Engine) -> bool:
        """Return whether it is this engine that is loaded."""
        return self._loaded.get(key) is engine

    def get_loaded(self, key: ModelKey) -> Engine | None:
        """Return the engine if it is loaded."""
        engine = self._loaded.get(key)
        if engine is not None:
            self._loaded.move_to_end(key)
        return engine

    async def get_or_load(self, key: ModelKey) -> Engine:
        """Return the engine, loading it if needed. Raises what `load` raises.

        A damaged bundle stays so until `forget_failures`: to find a damaged file means to hash it,
        and the one thread that loads would do that for every request.
        """
        engine = self.get_loaded(key)
        if engine is not None:
            return engine
        if key in self._failures:
            raise self._failures[key].with_traceback(None)
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._load_engine(key))
            loading.add_done_callback(lambda _: self._loading.pop(key))
        return await asyncio.shield(loading)  # who asks may leave; others wait for the same

    async def _load_engine(self, key: ModelKey) -> Engine:
        loop = asyncio.get_running_loop()
        try:
            engine = await loop.run_in_executor(self._thread, self._load, key)
        except BundleError as error:
            self._failures[key] = error
            raise
        self._loaded[key] = engine
        self._evict_to_budget(key)
        return engine

    def _evict_to_budget(self, newest: ModelKey) -> None:
        """Evict until the rest fits; batches that still run keep their engine."""
        total = sum(self.loaded_bytes.values())
        for key in list(self._loaded):
            if total <= self._budget_bytes:
                return
            if key != newest and key not in self.pinned:
                evicted = self._loaded.pop(key)
                total -= evicted.num_bytes
                self._on_evict(evicted)
                log.info("%s:%s put out of memory", *key)
        if total > self._budget_bytes:
            log.warning("the models that must stay take %d of %d bytes", total, self._budget_bytes)

    def evict_models(self, keys: Collection[ModelKey]) -> None:
        """Evict these engines."""
        for key in keys:
            evicted = self._loaded.pop(key, None)
            if evicted is not None:
                self._on_evict(evicted)

    def forget_failures(self) -> None:
        """Try again to load what could not be loaded, once it is asked for."""
        self._failures.clear()

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
