"""One version of a model answers texts: loaded, encoded, batched; what goes wrong is a refusal.

Knows no names of models beyond the key of a version, no canary and no protocol.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from serving.engine.engine import Engine, split
from serving.http import deadline
from serving.http.messages import Refusal
from serving.http.metrics import Sample
from serving.inference.batcher import Batcher, BatchFailed, Closed, Late, Overloaded
from serving.inference.model_cache import Key, Pool
from serving.interface import Limits, Statistics
from trainers.data.tokenizer import EncodingError

# Below so many characters a text is encoded in the event loop: a hop to a thread costs more.
FEW_CHARACTERS = 4096

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """What one version answered: its engine, a value a text, and the encoded texts."""

    engine: Engine
    values: Sequence[Any]
    rows: Sequence[np.ndarray]


class Answering:
    """Versions of models that share one engine thread and one memory budget."""

    def __init__(self, load: Callable[[Key], Engine], limits: Limits, budget_bytes: int) -> None:
        self.pool = Pool(load, budget_bytes)
        self.batcher = Batcher(limits.max_waiting_requests, limits.max_waiting_tokens)
        self._statistics: dict[Key, Statistics] = {}
        self._sound: dict[Key, bool] = {}  # whether the last batch of each succeeded

    async def answer(
        self, key: Key, texts: Sequence[str], tasks: Collection[str], truncate: bool = True
    ) -> Answered:
        """The answers of one version, where it does one of `tasks`. Raises Refusal."""
        started = time.perf_counter()
        engine = await self.engine(key)
        if engine.card.task not in tasks:
            raise Refusal(
                "wrong-task",
                f"{key[0]}:{key[1]} is a model for {engine.card.task}; this call is for "
                f"{' or '.join(sorted(tasks))}",
            )
        rows = await self._encode(engine, texts, truncate)
        try:
            values, waited = await self.batcher.submit(engine, rows, deadline.deadline.get())
        except (Overloaded, Late, Closed, BatchFailed) as error:
            raise self._refusal(key, error) from error
        self._sound[key] = True
        self._count(key, len(texts), time.perf_counter() - started, waited)
        return Answered(engine, values, rows)

    async def warm(self, key: Key) -> None:
        """Have a version in memory, its slow first answer behind it, however much waits.

        Raises BundleError where it cannot be loaded, and BatchFailed where it does not answer.
        """
        engine = await self.pool.get(key)
        samples, _ = engine.encode([engine.probe])
        await self.batcher.submit(engine, split(samples), admitted=True)
        self._sound[key] = True

    async def engine(self, key: Key) -> Engine:
        """The engine of a version, loaded. Raises Refusal."""
        engine = self.pool.here(key)
        if engine is not None:
            return engine
        try:
            return await self.pool.get(key)
        except (BerthaError, OSError) as error:
            raise Refusal("unready", f"{key[0]}:{key[1]} cannot be loaded: {error}") from error

    def statistics_of(self, key: Key) -> Statistics:
        """What a version has done since it was loaded here."""
        engine = self.pool.here(key)
        meter = self.batcher.meters.get(engine) if engine is not None else None
        held = self._statistics.get(key, Statistics())
        return replace(held, num_executions=meter.num_batches if meter else 0)

    def waits(self) -> tuple[float, int]:
        """Seconds that requests waited for the engine thread, and how many requests."""
        held = list(self._statistics.values())
        return sum(s.queue_seconds for s in held), sum(s.num_answered for s in held)

    def samples(self) -> Iterator[tuple[Sample, float]]:
        """What was done and what is held, for the meters."""
        meter = self.batcher.total
        yield ("bertha_batches_total", ()), meter.num_batches
        yield ("bertha_batch_rows_total", ()), meter.num_rows
        yield ("bertha_tokens_total", ()), meter.num_tokens
        yield ("bertha_busy_seconds_total", ()), meter.busy_seconds
        yield ("bertha_waiting_requests", ()), self.batcher.num_waiting
        for (name, version), done in list(self._statistics.items()):
            labels = (("model", name), ("version", version))
            yield ("bertha_texts_total", labels), done.num_texts
            yield ("bertha_answers_total", labels), done.num_answered
            yield ("bertha_failures_total", labels), done.num_failed
            yield ("bertha_model_seconds_total", labels), done.seconds
            yield ("bertha_queue_seconds_total", labels), done.queue_seconds
        for (name, version), size in self.pool.loaded.items():
            labels = (("model", name), ("version", version))
            yield ("bertha_model_loaded", labels), 1
            yield ("bertha_model_bytes", labels), size

    async def sound(self, key: Key) -> bool:
        """Whether a version answers: it did last time, or it does now."""
        if self._sound.get(key):
            return True
        try:
            engine = await self.engine(key)
            await self.answer(key, [engine.probe], (engine.card.task,))
        except Refusal as refusal:
            return refusal.kind == "overloaded"
        return True

    async def close(self) -> None:
        """Answer what waits and end the threads."""
        await self.batcher.close()
        self.pool.close()

    async def encode(self, key: Key, texts: Sequence[str]) -> tuple[Engine, list[np.ndarray]]:
        """The engine of a version, and texts as it reads them. Raises Refusal."""
        engine = await self.engine(key)
        return engine, await self._encode(engine, texts, truncate=True)

    async def _encode(
        self, engine: Engine, texts: Sequence[str], truncate: bool
    ) -> list[np.ndarray]:
        try:
            if sum(map(len, texts)) < FEW_CHARACTERS:
                samples, num_cut = engine.encode(texts)
            else:
                samples, num_cut = await asyncio.to_thread(engine.encode, texts)
        except EncodingError as error:
            raise Refusal("unreadable", str(error)) from None
        if num_cut and not truncate:
            raise Refusal(
                "too-long",
                f"{num_cut} of {len(texts)} texts longer than {engine.card.max_length} tokens; "
                "shorten, or let them be cut",
            )
        return split(samples)

    def _refusal(self, key: Key, error: Overloaded | Late | Closed | BatchFailed) -> Refusal:
        """What the client is told of an error of the batcher."""
        match error:
            case Overloaded():
                return Refusal("overloaded", str(error), error.retry_after_seconds)
            case Late():
                return Refusal("late", str(error))
            case Closed():
                return Refusal("unready", str(error), 1)
        log.error("a batch of %s:%s failed", *key, exc_info=error)
        self._sound[key] = False
        self._statistics.setdefault(key, Statistics()).num_failed += 1
        return Refusal("failed", str(error))

    def _count(self, key: Key, num_texts: int, seconds: float, waited: float) -> None:
        held = self._statistics.setdefault(key, Statistics())
        held.num_texts += num_texts
        held.num_answered += 1
        held.seconds += seconds
        held.queue_seconds += waited
        held.compute_seconds += seconds - waited
        held.last_inference = time.time()
