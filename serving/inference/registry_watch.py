"""Follow a registry: adopt its changes, and go on with what was last read while it cannot be read.

The previous live version of a name answers until the new one is in memory. Whatever happens to the
registry, the polls go on and what is in memory answers.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from cluster.errors import BerthaError
from serving.inference.batcher import BatchFailed
from serving.inference.executor import Executor
from serving.inference.model_cache import ModelKey
from serving.inference.model_table import ModelTable
from serving.registry.model_ref import ModelDamaged, ModelNotFound
from serving.registry.state import ModelState
from trainers.storage.filesystem import StoreError

POLL_SECONDS = 1.0
RETRY_POLLS = 60  # after which a version that could not be loaded is tried again

log = logging.getLogger(__name__)


class RegistryWatch:
    """Keeps a table and the engines in memory as the registry says. Belongs to one event loop.

    record_failure: is told of each failed attempt to load a version.
    """

    def __init__(
        self, table: ModelTable, executor: Executor, record_failure: Callable[[ModelKey], None]
    ) -> None:
        self._table, self._executor, self._record_failure = table, executor, record_failure
        self._refreshing = asyncio.Lock()
        self._num_refreshes = 0
        self._unfit: dict[str, int] = {}  # states whose live version could not be loaded
        self._load_failures: dict[ModelKey, str] = {}  # as they were logged
        self._poll_failure = ""  # as it was logged

    async def start(self) -> None:
        """Read the registry and load the default model, or else the first that can be loaded.

        Raises BerthaError if none can be.
        """
        await asyncio.to_thread(self._table.refresh)
        self._table.adopt_states(self._table.pending_states())
        for key in self._table.live_keys():
            if await self.preload(key) is None:
                self._pin_default()
                return
        self._raise_nothing_live()

    async def refresh(self) -> None:
        """Read the registry and adopt what can be served. Raises BerthaError."""
        async with self._refreshing:  # of two at once, the older reading could be adopted last
            await self._read_registry()
            for state in self._table.pending_states():
                if self._unfit.get(state.name) != state.number:
                    await self._adopt_state(state)
            served, cache = set(self._table.list_versions()), self._executor.cache
            cache.evict_models([key for key in cache.loaded_bytes if key not in served])
            self._pin_default()

    async def preload(self, key: ModelKey) -> Exception | None:
        """Load a version and return why it does not answer, if so; report that, and log it once."""
        try:
            await self._executor.preload(key)
        except Exception as error:  # of any library that reads the model's files
            if self._load_failures.get(key) != str(error):
                expected = isinstance(error, BerthaError | BatchFailed | OSError)
                trace = None if expected else error
                log.error("%s:%s cannot be served: %s", *key, error, exc_info=trace)
            self._load_failures[key] = str(error)
            self._record_failure(key)
            return error
        self._load_failures.pop(key, None)
        return None

    async def poll(self) -> None:
        """Refresh every second, for ever; log a failure once for each reason."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.refresh()
            except Exception as error:  # whatever it is, the next change must be adopted
                self._log_poll_failure(error)
            else:
                if self._poll_failure:
                    log.warning("the registry can be read again")
                self._poll_failure = ""

    async def _read_registry(self) -> None:
        """Read the registry, and decide whether what could not be loaded is tried again."""
        damaged = self._table.damage.keys()
        await asyncio.to_thread(self._table.refresh)
        self._table.adopt_states(())  # which model is the default may be known by now
        self._num_refreshes += 1
        if damaged != self._table.damage.keys() or self._num_refreshes % RETRY_POLLS == 0:
            self._unfit.clear()
            self._executor.cache.forget_failures()

    async def _adopt_state(self, state: ModelState) -> None:
        """Serve by a state, its live version loaded first if the name answers by another now."""
        cache, old = self._executor.cache, self._table.served_state(state.name)
        loaded = old and old.live and cache.load_state((old.name, old.live)) == "ready"
        cache.evict_models(_replaced_versions(old, state))
        # A name that is answering must not stop to load its new version: that is loaded first, and
        # if it does not answer, the state is not adopted and the old version stays live.
        failure = None
        if loaded and state.live:
            cache.forget_failures()
            failure = await self.preload((state.name, state.live))
        if failure is None:
            self._table.adopt_states([state])
        elif not isinstance(failure, StoreError | OSError):  # those pass; it is tried at each poll
            self._unfit[state.name] = state.number

    def _pin_default(self) -> None:
        """Keep the default model in memory whatever else is requested."""
        live = self._table.default_key()
        self._executor.cache.pinned = [live] if live else []

    def _raise_nothing_live(self) -> NoReturn:
        """Raise why no model can be served."""
        failures = [f"{':'.join(key)}: {why}" for key, why in self._load_failures.items()]
        if failures:
            raise ModelDamaged(f"no live version can be served: {'; '.join(failures[:3])}")
        try:
            self._table.resolve_reference(None)
        except ModelNotFound:
            address = self._table.address
            raise ModelNotFound(f"{address}: no model is live; deploy one first") from None
        raise AssertionError("a live model was not tried")

    def _log_poll_failure(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if reason == self._poll_failure:
            return
        self._poll_failure = reason
        text = "the registry cannot be read; serving what was last read: %s"
        if isinstance(error, BerthaError | OSError):
            log.warning(text, error)
        else:
            log.error(text, reason, exc_info=error)


def _replaced_versions(old: ModelState | None, new: ModelState) -> list[ModelKey]:
    """Return the versions that are other bundles now: those of a registry that was made anew."""
    return [
        (new.name, version)
        for version, entry in new.versions.items()
        if old is not None and version in old.versions and old.versions[version].seal != entry.seal
    ]
