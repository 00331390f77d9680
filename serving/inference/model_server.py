"""The model server: models of a registry by name, version or alias.

A deployment, promotion or rollback needs no restart, and a damaged version concerns nobody who does
not ask for it.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from serving.engine.devices import CPU, open_device
from serving.engine.engine import Engine
from serving.engine.token_vectors import TokenEmbedder
from serving.http.messages import HTTPError, note_answer, note_truncated
from serving.inference.attribution import Attributor, NotExplainable
from serving.inference.canary import CanaryRouter
from serving.inference.drift import DriftWindows
from serving.inference.executor import Executor
from serving.inference.feedback import FeedbackStore
from serving.inference.management import RegistryAdmin
from serving.inference.model_cache import ModelKey
from serving.inference.model_table import ModelTable
from serving.inference.registry_watch import RegistryWatch
from serving.inference.side_model import SideModel
from serving.interface import (
    Explanation,
    Feedback,
    InferenceResult,
    Limits,
    MaskPrediction,
    ModelInfo,
    ModelStatistics,
    Prediction,
    Token,
    Vector,
)
from serving.registry.model_ref import (
    InvalidReference,
    ModelDamaged,
    ModelNotFound,
    ModelReference,
)
from serving.registry.registry import Registry
from serving.registry.state import ModelState
from trainers.models.card import BundleError

LABEL_TASKS = ("classification", "multi-label", "regression")
EXPLAINABLE_TASKS = ("classification", "multi-label")
MAX_TOKEN_VECTORS = 4096  # of a request; JSON of more would be tens of megabytes

log = logging.getLogger(__name__)


class ModelServer:
    """Implements `Models` over a registry. Belongs to the event loop that creates it."""

    def __init__(
        self,
        registry: Registry,
        cache: Path,
        limits: Limits,
        budget_bytes: int,
        device: str = CPU,
        response_bytes: int = 0,
        feedback: FeedbackStore | None = None,
    ) -> None:
        """Describe what is served. Raises DeviceError if no such device is here.

        cache: for bundles of a remote registry. budget_bytes: of models, in the memory of `device`,
        the kind that they compute on. response_bytes: as `Executor` has it.
        feedback: takes right answers; None: nobody does.
        """
        self.limits = limits
        self._registry, self._cache, self._device = registry, cache, device
        self._feedback = feedback
        opened = open_device(device)
        self.table = ModelTable(registry, device, opened.name)
        self.executor = Executor(
            self._load_engine, self._info_of, limits, budget_bytes, opened, response_bytes
        )
        self.canary_router = CanaryRouter(self.executor, self._preload_in_background)
        self.drift = DriftWindows()
        self._attributor = SideModel(
            self._fetch_bundle, Attributor.from_bundle, "explanations", NotExplainable
        )
        self._token_embedder = SideModel(
            self._fetch_bundle, TokenEmbedder.from_bundle, "vectors of tokens"
        )
        self._watch = RegistryWatch(
            self.table, self.executor, self.canary_router.record_load_failure
        )
        self._preloading: set[ModelKey] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self.refresh = self._watch.refresh
        self.management = RegistryAdmin(registry, self.executor, self.refresh, self.get_info)

    async def start(self) -> None:
        """Read the registry and load the default model.

        Where that cannot be loaded, another is, so that all the others answer by name. Raises
        BerthaError if none can be.
        """
        await self._watch.start()
        self._start_task(self._watch.poll())

    async def predict(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Prediction]:
        """As `Models.predict`."""
        return await self._run_request(model, texts, LABEL_TASKS, truncate)

    async def embed(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[Vector]:
        """As `Models.embed`."""
        return await self._run_request(model, texts, ("embedding",), truncate)

    async def fill_mask(
        self,
        model: str | None,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> InferenceResult[tuple[tuple[MaskPrediction, ...], ...]]:
        """As `Models.fill_mask`."""
        result = await self._run_request(model, texts, ("masked-lm",), True)
        engine = await self.executor.get_engine((result.model.name, result.model.version))
        for number, logits in enumerate(result.values, 1):
            if not len(logits):
                raise HTTPError(
                    "unreadable", f"text {number} holds no {engine.mask_token} to fill in"
                )
        predictions = [
            engine.predict_masks(text, row, logits, top_k, targets)
            for text, row, logits in zip(texts, result.rows, result.values, strict=True)
        ]
        return replace(result, values=predictions)

    async def explain(
        self, model: str | None, texts: Sequence[str], *, label: str | None = None
    ) -> InferenceResult[Explanation]:
        """As `Models.explain`."""
        info = self.get_info(model)
        if info.task not in EXPLAINABLE_TASKS:
            raise HTTPError("wrong-task", f"{info.name} is a model for {info.task}, without labels")
        if label is not None and label not in info.labels:
            names = ", ".join(info.labels)
            raise HTTPError("malformed", f"label {label[:60]!r}: this model has {names}")
        key = (info.name, info.version)
        samples, truncated = await self.executor.encode_texts(key, texts)
        rows = [samples[text] for text in range(len(samples))]
        explanations = await self._attributor.run(
            key, lambda attributor: [attributor.explain(text, label) for text in texts]
        )
        note_truncated(truncated)
        result = InferenceResult(self._info_of(key), explanations, rows, truncated)
        note_answer(result)
        return result

    async def embed_tokens(
        self, model: str | None, texts: Sequence[str], *, truncate: bool = True
    ) -> InferenceResult[np.ndarray]:
        """As `Models.embed_tokens`."""
        info = self.get_info(model)
        if info.task != "embedding":
            raise HTTPError(
                "wrong-task", f"{info.name} is a model for {info.task}; this call is for embedding"
            )
        key = (info.name, info.version)
        samples, truncated = await self.executor.encode_texts(key, texts, truncate)
        rows = [samples[text] for text in range(len(samples))]
        if (num_tokens := sum(map(len, rows))) > MAX_TOKEN_VECTORS:
            raise HTTPError(
                "too-large",
                f"{num_tokens} tokens, but a request is answered with the vectors of at most "
                f"{MAX_TOKEN_VECTORS}; send several requests",
            )
        vectors = await self._token_embedder.run(key, lambda embedder: embedder.embed(rows))
        note_truncated(truncated)
        return InferenceResult(self._info_of(key), vectors, rows, truncated)

    async def count_tokens(self, model: str | None, texts: Sequence[str]) -> list[int]:
        """As `Models.count_tokens`."""
        info = self.get_info(model)
        return await self.executor.count_tokens((info.name, info.version), texts)

    async def keep_feedback(self, feedback: Feedback) -> ModelInfo:
        """As `FeedbackTaking.keep_feedback`."""
        if self._feedback is None:
            raise HTTPError(
                "forbidden", "feedback is not taken here; serve with --feedback DIR to open it"
            )
        found = await self._feedback.find_text(feedback)
        info = self.get_info(found.model)
        if info.task not in LABEL_TASKS:
            raise HTTPError("wrong-task", f"{info.name} is a model for {info.task}, without labels")
        await self._feedback.append(found, info)
        return info

    async def tokenize(
        self, model: str | None, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> Sequence[Sequence[Token]]:
        """As `Models.tokenize`."""
        info = self.get_info(model)
        return await self.executor.tokenize((info.name, info.version), texts, add_special_tokens)

    async def detokenize(
        self, model: str | None, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool = True
    ) -> Sequence[str]:
        """As `Models.detokenize`."""
        info = self.get_info(model)
        return await self.executor.detokenize((info.name, info.version), rows, skip_special_tokens)

    def get_info(self, model: str | None) -> ModelInfo:
        """As `Models.get_info`."""
        state, reference = self._resolve_reference(model)
        try:
            return self._info_of((state.name, state.resolve_version(reference)))
        except ModelDamaged as error:
            raise HTTPError("unready", str(error)) from None
        except ModelNotFound as error:
            raise HTTPError("no-model", str(error)) from None

    def list_models(self) -> Sequence[ModelInfo]:
        """As `Models.list_models`; damaged versions are left out."""
        return [self._info_of(key) for key in self.table.list_versions()]

    def get_statistics(self, model: str | None) -> ModelStatistics:
        """As `Models.get_statistics`."""
        info = self.get_info(model)
        return self.executor.get_statistics((info.name, info.version))

    async def is_ready(self) -> bool:
        """As `Models.is_ready`."""
        live, cache = self.table.default_key(), self.executor.cache
        if live is not None and await self.executor.is_healthy(live):
            return True
        if live is not None and cache.load_state(live) == "ready":
            return False
        # A new replica would not heal a default model whose files are damaged, and this one answers
        # for the other names.
        others = [await self.executor.is_healthy(key) for key in list(cache.loaded_bytes)]
        return any(others)

    async def close(self) -> None:
        """Answer what waits, and stop."""
        for task in self._background:
            task.cancel()
        await self.executor.close()
        self._attributor.close()
        self._token_embedder.close()
        if self._feedback is not None:
            self._feedback.close()

    async def _run_request(
        self, model: str | None, texts: Sequence[str], tasks: Collection[str], truncate: bool
    ) -> InferenceResult[Any]:
        """Answer texts by the version that `model` means now."""
        state, reference = self._resolve_reference(model)
        route = self.canary_router.run_request
        try:
            result = await route(state, reference, texts, tasks, truncate)
        except ModelNotFound as error:
            raise HTTPError("no-model", str(error)) from None
        note_truncated(result.truncated)
        note_answer(result)
        self.drift.record(result)
        if self._feedback is not None and result.model.task in LABEL_TASKS:
            self._feedback.remember(result.model, texts)
        return result

    def _resolve_reference(self, model: str | None) -> tuple[ModelState, ModelReference]:
        try:
            return self.table.resolve_reference(model)
        except ModelDamaged as error:
            raise HTTPError("unready", str(error)) from None
        except (InvalidReference, ModelNotFound) as error:
            raise HTTPError("no-model", str(error)) from None

    def _info_of(self, key: ModelKey) -> ModelInfo:
        return self.table.get_info(key, self.executor.cache.load_state(key))

    def _fetch_bundle(self, key: ModelKey) -> Path:
        """Return the directory of a bundle; the registry's state need not be readable for that."""
        if key in self.table.damage:
            raise ModelDamaged(self.table.damage[key])
        entry = self.table.find_version(key)
        return self._registry.fetch_bundle(*key, self._cache, None if entry is None else entry.seal)

    def _load_engine(self, key: ModelKey) -> Engine:
        directory = self._fetch_bundle(key)
        try:
            return Engine.load(directory, device=self._device)
        except (BerthaError, OSError):
            raise
        except Exception as error:  # of a library, on files that are as they were registered
            log.exception("%s:%s", *key)
            raise BundleError(f"{directory}: {type(error).__name__}: {error}") from error

    def _preload_in_background(self, key: ModelKey) -> None:
        if key not in self._preloading:
            self._preloading.add(key)
            task = self._start_task(self._watch.preload(key))
            task.add_done_callback(lambda _: self._preloading.discard(key))

    def _start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
