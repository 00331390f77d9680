"""Canary routing: which version answers a request, which gets a shadow copy, what is counted.

Every request is answered: if the canary cannot, or is not in memory yet, the live version does.
Requests that are compared are computed: a version whose answers are kept would seem the faster.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.http.messages import HTTPError
from serving.inference.executor import Executor
from serving.inference.model_cache import ModelKey
from serving.interface import InferenceResult, ModelInfo, Prediction, choose_labels
from serving.registry.canary_metrics import CanaryMetrics
from serving.registry.model_ref import ModelReference
from serving.registry.state import ModelState

MAX_SHADOW_REQUESTS = 32  # under way; beyond, requests are not copied
MODEL_FAULTS = ("failed", "unready", "late", "internal")  # errors that count against a version
SAME_ANSWER_TOLERANCE = 0.01  # relative, of two numbers; of two vectors, the angle

# Multiples of the golden ratio, modulo 1, fill [0, 1) more evenly than those of any other number:
# any run of n of them has n * share below `share` to within a few, so a canary gets its share
# exactly, at any moment, where a random draw would miss by sqrt(n) / 2. Here in 64 bits (Knuth,
# The Art of Computer Programming, volume 3, section 6.4).
GOLDEN = 0x9E3779B97F4A7C15


class RouteDecision(NamedTuple):
    """The version that answers, and the one that gets a shadow copy, if any."""

    version: str
    shadow: str | None = None


def choose_version(state: ModelState, reference: ModelReference, draw: float) -> RouteDecision:
    """Choose the version for a request by `draw`, a number in [0, 1).

    A version or an alias, `@live` among them, means that version whatever canary runs. Raises
    ModelNotFound.
    """
    version = state.resolve_version(reference)
    canary = state.canary
    if canary is None or reference.version is not None or reference.alias is not None:
        return RouteDecision(version)
    if draw >= canary.share:
        return RouteDecision(version)
    if canary.shadow:
        return RouteDecision(version, canary.version)
    return RouteDecision(canary.version)


class TrafficSequence:
    """A low-discrepancy sequence of draws for each name; thread-safe.

    Of any n draws in a row, the share below s is s to within a few draws; random numbers would miss
    it by about sqrt(n) / 2.
    """

    def __init__(self) -> None:
        self._counters: dict[str, itertools.count[int]] = {}

    def next_draw(self, name: str) -> float:
        """Return the next draw in [0, 1)."""
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters.setdefault(name, itertools.count(1))
        # 53 bits, because a float of all 64 could round up to 1.
        return ((next(counter) * GOLDEN % 2**64) >> 11) / 2**53


class CanaryRouter:
    """Routes requests while canaries run, and counts them. Belongs to one event loop.

    preload: starts to load a version, and returns at once.
    """

    def __init__(self, executor: Executor, preload: Callable[[ModelKey], None]) -> None:
        self.metrics: dict[str, CanaryMetrics] = {}
        self._executor, self._preload = executor, preload
        self._traffic = TrafficSequence()
        self._shadow_tasks: set[asyncio.Task[None]] = set()

    async def run_request(
        self,
        state: ModelState,
        reference: ModelReference,
        texts: Sequence[str],
        tasks: Collection[str],
        truncate: bool,
    ) -> InferenceResult[Any]:
        """Answer texts by the live version or the canary.

        Raises HTTPError and ModelNotFound.
        """
        decision = choose_version(state, reference, self._traffic.next_draw(state.name))
        metrics = self._metrics_for(state, reference)
        if metrics is None:
            key = (state.name, decision.version)
            return await self._executor.run_request(key, texts, tasks, truncate)
        decision = self._skip_unloaded_canary(metrics, decision)
        if decision.version == metrics.canary:
            return await self._run_canary(metrics, texts, tasks, truncate)
        return await self._run_live(metrics, decision, texts, tasks, truncate)

    @property
    def num_shadow_requests(self) -> int:
        """Shadow copies under way."""
        return len(self._shadow_tasks)

    def record_load_failure(self, key: ModelKey) -> None:
        """Count a failure of a version that could not be loaded, if it is a canary."""
        metrics = self.metrics.get(key[0])
        if metrics is not None and metrics.canary == key[1]:
            metrics.canary_metrics.record_request(0.0, failed=True)

    def _metrics_for(self, state: ModelState, reference: ModelReference) -> CanaryMetrics | None:
        """Return the metrics of the running canary; None if none is concerned."""
        canary = state.canary
        if canary is None or state.live is None or reference != ModelReference(state.name):
            return None
        trial_id = (state.name, state.live, canary.version, canary.started)
        metrics = self.metrics.get(state.name)
        if metrics is None or metrics.trial_id != trial_id:
            metrics = self.metrics[state.name] = CanaryMetrics(*trial_id)
        return metrics

    def _skip_unloaded_canary(
        self, metrics: CanaryMetrics, decision: RouteDecision
    ) -> RouteDecision:
        """Route to the live version while the canary is loading."""
        key = (metrics.name, metrics.canary)
        load_state = self._executor.cache.load_state(key)
        if metrics.canary not in decision or load_state == "ready":
            return decision
        if load_state == "cold":
            self._preload(key)
        return RouteDecision(metrics.live)

    async def _run_live(
        self,
        metrics: CanaryMetrics,
        decision: RouteDecision,
        texts: Sequence[str],
        tasks: Collection[str],
        truncate: bool,
    ) -> InferenceResult[Any]:
        key, started = (metrics.name, metrics.live), time.perf_counter()
        try:
            result = await self._executor.run_request(key, texts, tasks, truncate, use_cache=False)
        except HTTPError as error:
            if error.kind in MODEL_FAULTS:
                metrics.live_metrics.record_request(0.0, failed=True)
            raise
        metrics.live_metrics.record_request(time.perf_counter() - started)
        if decision.shadow is not None and len(self._shadow_tasks) < MAX_SHADOW_REQUESTS:
            task = asyncio.create_task(self._run_shadow(metrics, result, texts, tasks))
            self._shadow_tasks.add(task)  # the event loop itself holds tasks only weakly
            task.add_done_callback(self._shadow_tasks.discard)
        return result

    async def _run_canary(
        self, metrics: CanaryMetrics, texts: Sequence[str], tasks: Collection[str], truncate: bool
    ) -> InferenceResult[Any]:
        """Answer by the canary, or by the live version if it cannot."""
        key, started = (metrics.name, metrics.canary), time.perf_counter()
        try:
            result = await self._executor.run_request(key, texts, tasks, truncate, use_cache=False)
        except HTTPError as error:
            if error.kind not in (*MODEL_FAULTS, "wrong-task"):
                raise
            metrics.canary_metrics.record_request(0.0, failed=True)
            key = (metrics.name, metrics.live)
            return await self._executor.run_request(key, texts, tasks, truncate)
        metrics.canary_metrics.record_request(time.perf_counter() - started)
        return result

    async def _run_shadow(
        self,
        metrics: CanaryMetrics,
        live: InferenceResult[Any],
        texts: Sequence[str],
        tasks: Collection[str],
    ) -> None:
        """Answer again by the canary, and compare with the live version."""
        key, started = (metrics.name, metrics.canary), time.perf_counter()
        try:
            canary = await self._executor.run_request(key, texts, tasks, use_cache=False)
        except HTTPError as error:
            if error.kind in (*MODEL_FAULTS, "wrong-task"):
                metrics.canary_metrics.record_request(0.0, failed=True)
            return
        metrics.canary_metrics.record_request(time.perf_counter() - started)
        for one, other in zip(live.values, canary.values, strict=True):
            metrics.record_pair(*_comparable_labels(one, other, live.model, canary.model))


def _comparable_labels(
    live: Any, canary: Any, live_model: ModelInfo, canary_model: ModelInfo
) -> tuple[str, str]:
    """Return two comparable labels: the models' own answers, or "same" and "different".

    Of multi-label the latter, as there are too many sets of labels to count each pair of them.
    """
    if isinstance(live, Prediction) and isinstance(canary, Prediction):
        if live_model.labels and canary_model.labels:
            one_set, other_set = _answer(live, live_model), _answer(canary, canary_model)
            if {live_model.task, canary_model.task} == {"classification"}:
                return one_set[0], other_set[0]
            return "same", "same" if set(one_set) == set(other_set) else "different"
        live, canary = live.scores, canary.scores
    one, other = np.ravel(live), np.ravel(canary)
    near = one.shape == other.shape and bool(
        np.linalg.norm(one - other) <= SAME_ANSWER_TOLERANCE * max(float(np.linalg.norm(one)), 1e-6)
    )
    return "same", "same" if near else "different"


def _answer(prediction: Prediction, model: ModelInfo) -> tuple[str, ...]:
    return choose_labels(prediction.scores, model.labels, model.task, model.thresholds)
