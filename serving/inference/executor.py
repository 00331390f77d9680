"""Run one version of a model: load, encode, batch, count; every failure becomes an HTTPError."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from serving.engine.devices import EngineDevice
from serving.engine.engine import Engine, split_rows
from serving.http.messages import HTTPError, request_deadline
from serving.http.metrics import Sample
from serving.inference.batcher import (
    Batcher,
    BatcherClosed,
    BatchFailed,
    DeadlineExceeded,
    Overloaded,
)
from serving.inference.model_cache import ModelCache, ModelKey
from serving.inference.response_cache import Answer, ResponseCache
from serving.interface import InferenceResult, Limits, ModelInfo, ModelStatistics, Token
from trainers.data.encoders.encoder import EmptyTextError
from trainers.data.ragged import RaggedArray
from trainers.data.tokenizer import EncodingError

# Texts of fewer characters are encoded in the event loop: a hop to a thread costs more.
FEW_CHARACTERS = 4096

log = logging.getLogger(__name__)


class Executor:
    """Versions of models that share one device, one engine thread and one memory budget.

    response_bytes: of answers that are kept for texts that come again; 0 for none.
    """

    def __init__(
        self,
        load: Callable[[ModelKey], Engine],
        get_info: Callable[[ModelKey], ModelInfo],
        limits: Limits,
        budget_bytes: int,
        device: EngineDevice,
        response_bytes: int = 0,
    ) -> None:
        self.responses = ResponseCache(response_bytes)
        self.cache = ModelCache(load, budget_bytes, self.responses.forget_engine)
        self.batcher = Batcher(limits)
        self._device = device
        self._get_info = get_info
        self._statistics: dict[ModelKey, ModelStatistics] = {}
        self._healthy: dict[ModelKey, bool] = {}  # whether the last batch of each succeeded

    async def run_request(
        self,
        key: ModelKey,
        texts: Sequence[str],
        tasks: Collection[str],
        truncate: bool = True,
        use_cache: bool = True,
    ) -> InferenceResult[Any]:
        """Answer texts by one version, if it does one of `tasks`. Raises HTTPError.

        use_cache: whether answers that are kept may be given.
        """
        started = time.perf_counter()
        engine = await self.get_engine(key)
        if engine.card.task not in tasks:
            raise HTTPError(
                "wrong-task",
                f"{key[0]}:{key[1]} is a model for {engine.card.task}; this call is for "
                f"{' or '.join(sorted(tasks))}",
            )
        kept: list[Answer | None] = [None] * len(texts)
        if use_cache:
            kept = self.responses.find(engine, texts)
        answers, waited = await self._complete(key, engine, texts, kept, truncate)
        self._record_answer(key, len(texts), time.perf_counter() - started, waited)
        return InferenceResult(
            self._get_info(key),
            [answer.value for answer in answers],
            [answer.row for answer in answers],
            [place for place, answer in enumerate(answers) if answer.is_cut],
        )

    async def _complete(
        self,
        key: ModelKey,
        engine: Engine,
        texts: Sequence[str],
        kept: Sequence[Answer | None],
        truncate: bool,
    ) -> tuple[list[Answer], float]:
        """Compute what is not kept; return all answers, and the seconds spent waiting."""
        if not truncate and any(answer is not None and answer.is_cut for answer in kept):
            kept = [None] * len(texts)  # to be refused, in words that count all texts
        missing = [text for text, answer in zip(texts, kept, strict=True) if answer is None]
        if not missing:
            return [answer for answer in kept if answer is not None], 0.0
        try:
            samples, truncated = await self._encode_with(engine, missing, truncate)
        except HTTPError:
            if len(missing) < len(texts):  # the message names texts by their place among all
                await self._encode_with(engine, texts, truncate)
            raise
        computed, waited = await self._compute(key, engine, samples)
        rows = [samples[place] for place in range(len(samples))]
        is_cut = set(truncated)
        fresh = [
            Answer(value, row, place in is_cut)
            for place, (value, row) in enumerate(zip(computed, rows, strict=True))
        ]
        if self.cache.is_loaded(key, engine):  # else nothing would ever drop them
            for text, answer in zip(missing, fresh, strict=True):
                self.responses.keep(engine, text, answer)
        remaining = iter(fresh)
        return [next(remaining) if answer is None else answer for answer in kept], waited

    async def _compute(
        self, key: ModelKey, engine: Engine, samples: RaggedArray
    ) -> tuple[Sequence[Any], float]:
        """Return a value for each sample, and the seconds spent waiting. Raises HTTPError."""
        rows, deadline = split_rows(samples), request_deadline.get()
        try:
            values, waited = await self.batcher.submit(engine, rows, deadline)
        except (Overloaded, DeadlineExceeded, BatcherClosed, BatchFailed) as error:
            raise self._to_http_error(key, error) from error
        self._healthy[key] = True
        return engine.pool_windows(values, samples), waited

    async def preload(self, key: ModelKey) -> None:
        """Load a version and run its slow first batch, whatever waits.

        Raises BundleError if it cannot be loaded, and BatchFailed if it does not answer.
        """
        engine = await self.cache.get_or_load(key)
        samples, _ = engine.encode([engine.probe_text])
        await self.batcher.submit(engine, split_rows(samples), admitted=True)
        self._healthy[key] = True

    async def get_engine(self, key: ModelKey) -> Engine:
        """Return the engine of a version, loading it if needed. Raises HTTPError."""
        try:
            return self.cache.get_loaded(key) or await self.cache.get_or_load(key)
        except (BerthaError, OSError) as error:
            raise HTTPError("unready", f"{key[0]}:{key[1]} cannot be loaded: {error}") from error

    async def encode_texts(
        self, key: ModelKey, texts: Sequence[str], truncate: bool = True
    ) -> tuple[RaggedArray, list[int]]:
        """Encode texts for a version; return the places of those cut as well. Raises HTTPError."""
        return await self._encode_with(await self.get_engine(key), texts, truncate)

    async def count_tokens(self, key: ModelKey, texts: Sequence[str]) -> list[int]:
        """Count the tokens of texts before they are cut. Raises HTTPError."""
        engine = await self.get_engine(key)
        try:
            if sum(map(len, texts)) < FEW_CHARACTERS:
                return engine.count_tokens(texts)
            return await asyncio.to_thread(engine.count_tokens, texts)
        except EncodingError as error:
            raise _refuse_text(error) from None

    async def tokenize(
        self, key: ModelKey, texts: Sequence[str], add_special_tokens: bool
    ) -> list[list[Token]]:
        """Return the tokens of texts before they are cut. Raises HTTPError."""
        engine = await self.get_engine(key)
        try:
            return await asyncio.to_thread(engine.tokenize, texts, add_special_tokens)
        except EncodingError as error:
            raise HTTPError("unreadable", str(error)) from None

    async def detokenize(
        self, key: ModelKey, rows: Sequence[Sequence[int]], skip_special_tokens: bool
    ) -> list[str]:
        """Return the text of each row of token ids. Raises HTTPError."""
        engine = await self.get_engine(key)
        try:
            return await asyncio.to_thread(engine.detokenize, rows, skip_special_tokens)
        except EncodingError as error:
            raise HTTPError("unreadable", str(error)) from None

    def get_statistics(self, key: ModelKey) -> ModelStatistics:
        """Return what a version has done since it was loaded."""
        engine = self.cache.get_loaded(key)
        batches = self.batcher.statistics.get(engine) if engine is not None else None
        done = self._statistics.get(key, ModelStatistics())
        return replace(done, num_executions=batches.num_batches if batches else 0)

    def queue_totals(self) -> tuple[float, int]:
        """Return the seconds that requests waited for the engine, and their number."""
        done = list(self._statistics.values())
        return sum(s.queue_seconds for s in done), sum(s.num_answered for s in done)

    def metric_samples(self) -> Iterator[tuple[Sample, float]]:
        """Yield the samples of this replica's models."""
        total, device = self.batcher.total, self._device
        kind = ("device", device.kind)
        yield ("bertha_device", (kind, ("name", device.name))), 1
        if memory := device.memory_bytes():
            yield ("bertha_device_memory_bytes", (kind,)), memory
        yield ("bertha_batches_total", ()), total.num_batches
        yield ("bertha_batch_rows_total", ()), total.num_rows
        yield ("bertha_tokens_total", ()), total.num_tokens
        yield ("bertha_busy_seconds_total", ()), total.busy_seconds
        yield ("bertha_waiting_requests", ()), self.batcher.num_waiting
        for (name, version), done in list(self._statistics.items()):
            labels = (("model", name), ("version", version))
            yield ("bertha_texts_total", labels), done.num_texts
            yield ("bertha_answers_total", labels), done.num_answered
            yield ("bertha_failures_total", labels), done.num_failed
            yield ("bertha_model_seconds_total", labels), done.seconds
            yield ("bertha_queue_seconds_total", labels), done.queue_seconds
        for (name, version), size in self.cache.loaded_bytes.items():
            labels = (("model", name), ("version", version))
            yield ("bertha_model_loaded", labels), 1
            yield ("bertha_model_bytes", labels), size
        yield from self.responses.metric_samples()

    async def is_healthy(self, key: ModelKey) -> bool:
        """Return whether the last batch of a version succeeded, or a probe does now."""
        if self._healthy.get(key):
            return True
        try:
            engine = await self.get_engine(key)
            task = (engine.card.task,)
            await self.run_request(key, [engine.probe_text], task, use_cache=False)
        except HTTPError as error:
            return error.kind == "overloaded"
        return True

    async def close(self) -> None:
        """Answer what waits and stop the threads."""
        await self.batcher.close()
        self.cache.close()

    async def _encode_with(
        self, engine: Engine, texts: Sequence[str], truncate: bool
    ) -> tuple[RaggedArray, list[int]]:
        try:
            if sum(map(len, texts)) < FEW_CHARACTERS:
                samples, is_cut = engine.encode(texts)
            else:
                samples, is_cut = await asyncio.to_thread(engine.encode, texts)
        except EncodingError as error:
            raise _refuse_text(error) from None
        truncated: list[int] = np.flatnonzero(is_cut).tolist()
        if truncated and not truncate:
            raise HTTPError(
                "too-long",
                f"{len(truncated)} of {len(texts)} texts longer than {engine.card.max_tokens} "
                "tokens; shorten, or let them be cut",
            )
        return samples, truncated

    def _to_http_error(
        self, key: ModelKey, error: Overloaded | DeadlineExceeded | BatcherClosed | BatchFailed
    ) -> HTTPError:
        match error:
            case Overloaded():
                return HTTPError("overloaded", str(error), error.retry_after_seconds)
            case DeadlineExceeded():
                return HTTPError("late", str(error))
            case BatcherClosed():
                return HTTPError("unready", str(error), 1)
        log.error("a batch of %s:%s failed", *key, exc_info=error)
        self._healthy[key] = False
        self._statistics.setdefault(key, ModelStatistics()).num_failed += 1
        return HTTPError("failed", str(error))

    def _record_answer(self, key: ModelKey, num_texts: int, seconds: float, waited: float) -> None:
        done = self._statistics.setdefault(key, ModelStatistics())
        done.num_texts += num_texts
        done.num_answered += 1
        done.seconds += seconds
        done.queue_seconds += waited
        done.compute_seconds += seconds - waited
        done.last_inference = time.time()


def _refuse_text(error: EncodingError) -> HTTPError:
    return HTTPError("empty" if isinstance(error, EmptyTextError) else "unreadable", str(error))
