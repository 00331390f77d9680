"""Loaded engines within a memory budget: loaded when first asked for, the least recent out first.

Knows no registry: whoever makes it says how a key is loaded.

    pool = Pool(load=lambda key: Engine.load(registry.fetch(*key)), budget_bytes=4 << 30)
    engine = await pool.get(("sentiment", "3"))
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

from serving.engine.engine import Engine

Key = tuple[str, str]  # name and version

log = logging.getLogger(__name__)


class Pool:
    """Engines by name and version. Belongs to one event loop; loads in a thread of its own."""

    def __init__(self, load: Callable[[Key], Engine], budget_bytes: int) -> None:
        self._load, self._budget_bytes = load, budget_bytes
        self._loaded: OrderedDict[Key, Engine] = OrderedDict()  # the least recent first
        self._loading: dict[Key, asyncio.Task[Engine]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self.pinned: Collection[Key] = ()  # never put out

    @property
    def loaded(self) -> dict[Key, int]:
        """Bytes of each engine in memory."""
        return {key: engine.num_bytes for key, engine in self._loaded.items()}

    def state(self, key: Key) -> str:
        """ "ready", "loading" or "cold"."""
        if key in self._loaded:
            return "ready"
        return "loading" if key in self._loading else "cold"

    def here(self, key: Key) -> Engine | None:
        """The engine, if it is loaded."""
        engine = self._loaded.get(key)
        if engine is not None:
            self._loaded.move_to_end(key)
        return engine

    async def get(self, key: Key) -> Engine:
        """The engine; loads it where it is not. Raises what `load` raises."""
        engine = self.here(key)
        if engine is not None:
            return engine
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._fetch(key))
            loading.add_done_callback(lambda _: self._loading.pop(key))
        return await asyncio.shield(loading)  # who asks may leave; others wait for the same

    async def _fetch(self, key: Key) -> Engine:
        engine = await asyncio.get_running_loop().run_in_executor(self._thread, self._load, key)
        self._loaded[key] = engine
        self._make_room(key)
        return engine

    def _make_room(self, newest: Key) -> None:
        """Put out the least recent until the rest fits; what still computes ends undisturbed."""
        total = sum(self.loaded.values())
        for key in list(self._loaded):
            if total <= self._budget_bytes:
                return
            if key != newest and key not in self.pinned:
                total -= self._loaded.pop(key).num_bytes
                log.info("%s:%s put out of memory", *key)
        if total > self._budget_bytes:
            log.warning("the models that must stay take %d of %d bytes", total, self._budget_bytes)

    def forget(self, keys: Collection[Key]) -> None:
        """Put out engines that are not in the registry any more."""
        for key in keys:
            self._loaded.pop(key, None)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
