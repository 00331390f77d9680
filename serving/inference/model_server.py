"""The models of an endpoint, as protocols ask for them: by name, version or alias.

Looks into the registry every second, so what is deployed, promoted or rolled back there is served
without a restart: a new live version answers once it is in memory, and until then the one before
does.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from serving.engine.engine import Engine
from serving.http.messages import Refusal
from serving.inference.batcher import BatchFailed
from serving.inference.canary import Trials
from serving.inference.executor import Answered, Answering
from serving.inference.explainer_pool import Explaining
from serving.inference.management import Manager
from serving.inference.model_cache import Key
from serving.inference.model_table import Catalogue
from serving.interface import (
    Answer,
    Explanation,
    Filling,
    Limits,
    ModelInfo,
    Prediction,
    Statistics,
    Vector,
)
from serving.registry.model_ref import BadReference, NoModel, Reference
from serving.registry.registry import Registry
from serving.registry.state import State

LABELLED = ("classification", "multi-label", "regression")
EXPLAINED = ("classification", "multi-label")
POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class House:
    """Implements `models.Models` over a registry. Made in, and belongs to, one event loop."""

    def __init__(self, registry: Registry, cache: Path, limits: Limits, budget_bytes: int) -> None:
        """cache: where bundles of a remote registry are kept. budget_bytes: of models in memory."""
        self.limits = limits
        self._registry, self._cache = registry, cache
        self.catalogue = Catalogue(registry)
        self.answering = Answering(self._load, limits, budget_bytes)
        self.trials = Trials(self.answering, self._begin)
        self._explaining = Explaining(lambda key: registry.fetch(*key, cache))
        self._unfit: dict[str, int] = {}  # states whose live version could not be loaded
        self._beginning: set[Key] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self.management = Manager(registry, self.refresh, self.find, self._hold, self._drop)

    async def open(self) -> None:
        """Read the registry, load what is live and answer a text with it. Raises BerthaError."""
        await asyncio.to_thread(self.catalogue.refresh)
        self.catalogue.adopt(self.catalogue.waiting())
        live = self._live()
        if live is None:
            raise NoModel(f"{self._registry.address}: no model is live; deploy one first")
        await self.answering.warm(live)
        self._pin()
        self._start(self._poll())

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> Answer[Prediction]:
        """As `Models.predict`."""
        return self._answer(*await self._ask(model, texts, LABELLED, truncate))

    async def embed(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> Answer[Vector]:
        """As `Models.embed`."""
        return self._answer(*await self._ask(model, texts, ("embedding",), truncate))

    async def fill(
        self,
        model: str | None,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> Answer[tuple[tuple[Filling, ...], ...]]:
        """As `Models.fill`."""
        key, answered = await self._ask(model, texts, ("masked-lm",), True)
        for number, logits in enumerate(answered.values, 1):
            if not len(logits):
                mask = answered.engine.mask
                raise Refusal("unreadable", f"text {number} holds no {mask} to fill in")
        filled = [
            answered.engine.fillings(text, row, logits, top_k, targets)
            for text, row, logits in zip(texts, answered.rows, answered.values, strict=True)
        ]
        return self._answer(key, Answered(answered.engine, filled, answered.rows))

    async def explain(
        self, model: str | None, texts: Sequence[str], *, label: str | None = None
    ) -> Answer[Explanation]:
        """As `Models.explain`."""
        info = self.find(model)
        if info.task not in EXPLAINED:
            raise Refusal("wrong-task", f"{info.name} is a model for {info.task}, without labels")
        if label is not None and label not in info.labels:
            names = ", ".join(info.labels)
            raise Refusal("malformed", f"label {label[:60]!r}: this model has {names}")
        key = (info.name, info.version)
        engine, rows = await self.answering.encode(key, texts)
        found = await self._explaining.explain(key, texts, label)
        return self._answer(key, Answered(engine, found, rows))

    def find(self, model: str | None) -> ModelInfo:
        """As `Models.find`."""
        state, reference = self._find(model)
        try:
            return self._info((state.name, state.version_of(reference)))
        except NoModel as error:
            raise Refusal("no-model", str(error)) from None

    def all(self) -> Sequence[ModelInfo]:
        """As `Models.all`."""
        return [self._info(key) for key in self.catalogue.versions()]

    def statistics(self, model: str | None) -> Statistics:
        """As `Models.statistics`."""
        info = self.find(model)
        return self.answering.statistics_of((info.name, info.version))

    async def ready(self) -> bool:
        """As `Models.ready`."""
        live = self._live()
        return live is not None and await self.answering.sound(live)

    async def refresh(self) -> None:
        """Look into the registry, and adopt what can be served of it. Raises BerthaError."""
        await asyncio.to_thread(self.catalogue.refresh)
        pool = self.answering.pool
        for state in self.catalogue.waiting():
            if self._unfit.get(state.name) == state.number:
                continue
            old = self.catalogue.adopted(state.name)
            hot = old is not None and old.live and pool.state((old.name, old.live)) == "ready"
            if not hot or state.live is None or await self._preload((state.name, state.live)):
                self.catalogue.adopt([state])
            else:
                self._unfit[state.name] = state.number
        served = set(self.catalogue.versions())
        pool.forget([key for key in pool.loaded if key not in served])
        self._pin()

    async def close(self) -> None:
        """Answer what waits, and end."""
        for task in self._background:
            task.cancel()
        await self.answering.close()
        self._explaining.close()

    async def _ask(
        self, model: str | None, texts: Sequence[str], tasks: Collection[str], truncate: bool
    ) -> tuple[Key, Answered]:
        """The answers of the version that `model` means now, and which that is."""
        state, reference = self._find(model)
        try:
            return await self.trials.answer(state, reference, texts, tasks, truncate)
        except NoModel as error:
            raise Refusal("no-model", str(error)) from None

    def _answer(self, key: Key, answered: Answered) -> Answer[Any]:
        return Answer(self._info(key), answered.values, [len(row) for row in answered.rows])

    def _find(self, model: str | None) -> tuple[State, Reference]:
        try:
            return self.catalogue.find(model)
        except (BadReference, NoModel) as error:
            raise Refusal("no-model", str(error)) from None

    def _info(self, key: Key) -> ModelInfo:
        pool = self.answering.pool
        engine = pool.here(key)
        return self.catalogue.info(key, pool.state(key), engine.backend if engine else "")

    def _live(self) -> Key | None:
        """The version that answers where no model is named."""
        state = self.catalogue.default()
        return None if state is None or state.live is None else (state.name, state.live)

    def _pin(self) -> None:
        """The default model stays in memory, whatever else is asked for."""
        live = self._live()
        self.answering.pool.pinned = [live] if live else []

    def _load(self, key: Key) -> Engine:
        return Engine.load(self._registry.fetch(*key, self._cache))

    async def _preload(self, key: Key) -> bool:
        """Whether a version is in memory and answers; one that does not is counted and logged."""
        try:
            await self.answering.warm(key)
        except (BerthaError, BatchFailed, OSError) as error:
            log.error("%s:%s cannot be served: %s", *key, error)
            self.trials.fault(key)
            return False
        return True

    def _begin(self, key: Key) -> None:
        """Load a version in the background, once however often it is asked for meanwhile."""
        if key not in self._beginning:
            self._beginning.add(key)
            task = self._start(self._preload(key))
            task.add_done_callback(lambda _: self._beginning.discard(key))

    async def _hold(self, model: str) -> None:
        info = self.find(model)
        await self.answering.engine((info.name, info.version))

    def _drop(self, model: str) -> None:
        info = self.find(model)
        self.answering.pool.forget([(info.name, info.version)])

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await self.refresh()
            except (BerthaError, OSError) as error:
                log.warning("the registry cannot be read; what was served is served on: %s", error)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
