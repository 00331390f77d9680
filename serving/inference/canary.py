"""A canary beside the live version: who answers, what is compared, what is counted.

Every request is answered: where the canary cannot, or is not in memory yet, the live version does.
Knows no registry and no names but those of a state.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

import numpy as np

from serving.http.messages import Refusal
from serving.inference.executor import Answered, Answering
from serving.inference.model_cache import Key
from serving.interface import Prediction
from serving.registry.canary_metrics import Tally
from serving.registry.model_ref import Reference
from serving.registry.state import State
from serving.registry.traffic_split import Choice, Turns, route

MOST_COPIES = 32  # under way for shadows; beyond, requests are not copied
OUR_FAULT = ("failed", "unready", "late", "internal")  # refusals that count against a version
NEAR = 0.01  # two numbers are the same answer within this share, two vectors within this angle


class Trials:
    """Routes requests while canaries run, and tallies them. Belongs to one event loop.

    preload: begins to load a version, and returns at once.
    """

    def __init__(self, answering: Answering, preload: Callable[[Key], None]) -> None:
        self.tallies: dict[str, Tally] = {}
        self._answering, self._preload = answering, preload
        self._turns = Turns()
        self._copies: set[asyncio.Task[None]] = set()

    async def answer(
        self,
        state: State,
        reference: Reference,
        texts: Sequence[str],
        tasks: Collection[str],
        truncate: bool,
    ) -> tuple[Key, Answered]:
        """The answers of the version whose turn it is, and which that is.

        Raises Refusal and NoModel.
        """
        choice = route(state, reference, self._turns.next(state.name))
        tally = self._tally(state, reference)
        if tally is None:
            key = (state.name, choice.version)
            return key, await self._answering.answer(key, texts, tasks, truncate)
        choice = self._in_memory(tally, choice)
        if choice.version == tally.canary:
            return await self._by_canary(tally, texts, tasks, truncate)
        return await self._by_live(tally, choice, texts, tasks, truncate)

    @property
    def num_copies(self) -> int:
        """Copies for shadows that are under way."""
        return len(self._copies)

    def fault(self, key: Key) -> None:
        """Count a version that could not be loaded, where it is a canary."""
        tally = self.tallies.get(key[0])
        if tally is not None and tally.canary == key[1]:
            tally.of_canary.count(0.0, failed=True)

    def _tally(self, state: State, reference: Reference) -> Tally | None:
        """What is counted of the canary of a name; None where none runs, or it is not meant."""
        canary = state.canary
        if canary is None or state.live is None or reference != Reference(state.name):
            return None
        subject = (state.name, state.live, canary.version, canary.started)
        held = self.tallies.get(state.name)
        if held is None or held.subject != subject:
            held = self.tallies[state.name] = Tally(*subject)
        return held

    def _in_memory(self, tally: Tally, choice: Choice) -> Choice:
        """The choice, without a canary that is not loaded yet; its loading begins."""
        key = (tally.name, tally.canary)
        state = self._answering.pool.state(key)
        if tally.canary not in choice or state == "ready":
            return choice
        if state == "cold":
            self._preload(key)
        return Choice(tally.live)

    async def _by_live(
        self,
        tally: Tally,
        choice: Choice,
        texts: Sequence[str],
        tasks: Collection[str],
        truncate: bool,
    ) -> tuple[Key, Answered]:
        key, started = (tally.name, tally.live), time.perf_counter()
        try:
            answered = await self._answering.answer(key, texts, tasks, truncate)
        except Refusal as refusal:
            if refusal.kind in OUR_FAULT:
                tally.of_live.count(0.0, failed=True)
            raise
        tally.of_live.count(time.perf_counter() - started)
        if choice.shadow is not None and len(self._copies) < MOST_COPIES:
            self._start(self._copy(tally, answered, texts, tasks))
        return key, answered

    async def _by_canary(
        self, tally: Tally, texts: Sequence[str], tasks: Collection[str], truncate: bool
    ) -> tuple[Key, Answered]:
        """The canary's answer; where it has none, the live version's."""
        key, started = (tally.name, tally.canary), time.perf_counter()
        try:
            answered = await self._answering.answer(key, texts, tasks, truncate)
        except Refusal as refusal:
            if refusal.kind not in (*OUR_FAULT, "wrong-task"):
                raise
            tally.of_canary.count(0.0, failed=True)
            key = (tally.name, tally.live)
            return key, await self._answering.answer(key, texts, tasks, truncate)
        tally.of_canary.count(time.perf_counter() - started)
        return key, answered

    async def _copy(
        self, tally: Tally, answered: Answered, texts: Sequence[str], tasks: Collection[str]
    ) -> None:
        """Let the canary answer what the live version has answered, and compare."""
        started = time.perf_counter()
        try:
            copy = await self._answering.answer((tally.name, tally.canary), texts, tasks)
        except Refusal as refusal:
            if refusal.kind in (*OUR_FAULT, "wrong-task"):
                tally.of_canary.count(0.0, failed=True)
            return
        tally.of_canary.count(time.perf_counter() - started)
        labels = answered.engine.card.labels, copy.engine.card.labels
        for live, canary in zip(answered.values, copy.values, strict=True):
            tally.agree(*_named(live, canary, *labels))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)


def _named(
    live: Any, canary: Any, live_labels: Sequence[str], canary_labels: Sequence[str]
) -> tuple[str, str]:
    """What two answers to one text say: labels, or whether they are near enough to be the same."""
    if isinstance(live, Prediction) and isinstance(canary, Prediction):
        if live_labels and canary_labels:
            return _said(live, live_labels), _said(canary, canary_labels)
        live, canary = live.scores, canary.scores
    one, other = np.ravel(live), np.ravel(canary)
    near = one.shape == other.shape and bool(
        np.linalg.norm(one - other) <= NEAR * max(float(np.linalg.norm(one)), 1e-6)
    )
    return "same", "same" if near else "different"


def _said(prediction: Prediction, labels: Sequence[str]) -> str:
    return labels[int(np.argmax(prediction.scores))]
