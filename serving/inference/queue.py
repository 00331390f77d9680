"""The order of waiting texts: which go into the model next, together. Knows no clock.

Each model has a heap. The next batch starts with the text that is due first and is filled from its
heap, in order, up to the model's token budget: nothing is padded, so texts of any length share a
batch. A text is due a multiple of its request's own work after it arrived: small requests overtake
large ones, and large ones never starve.

    queue = BatchQueue({"sentiment": 256}.__getitem__)
    queue.push(QueuedText("sentiment", values, due=12.5, request=request))
    for text in queue.pop_batch(): ...
"""

import heapq
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np


@dataclass(slots=True, eq=False)
class QueuedText:
    """One encoded text that waits; batches never mix models.

    request: what it belongs to, an opaque value of the caller.
    """

    model: Hashable
    values: np.ndarray
    due: float
    request: Any
    position: int = 0


_Heap = list[tuple[float, int, QueuedText]]  # by due time, then by order of arrival


class BatchQueue:
    """Waiting texts. Not thread-safe: the caller holds a lock.

    budget_of: returns the most tokens of a batch of a model.
    """

    def __init__(self, budget_of: Callable[[Any], int]) -> None:
        self._budget_of = budget_of
        self.num_rows = 0
        self.num_tokens = 0
        self._heaps: dict[Hashable, _Heap] = {}  # by model, none empty
        self._order = count()

    def push(self, text: QueuedText) -> None:
        """Add a text."""
        heap = self._heaps.setdefault(text.model, [])
        heapq.heappush(heap, (text.due, next(self._order), text))
        self.num_rows += 1
        self.num_tokens += len(text.values)

    def pop_batch(self) -> list[QueuedText]:
        """Remove and return the next batch, of one model; [] if nothing waits.

        Within the token budget, except for a single text that is longer than it.
        """
        if not self._heaps:
            return []
        model = min(self._heaps, key=lambda each: self._heaps[each][0][:2])
        heap, batch, num_tokens = self._heaps[model], list[QueuedText](), 0
        budget = self._budget_of(model)
        while heap and (not batch or num_tokens + len(heap[0][2].values) <= budget):
            text = heapq.heappop(heap)[2]
            num_tokens += len(text.values)
            batch.append(text)
        self.num_rows -= len(batch)
        self.num_tokens -= num_tokens
        if not heap:
            del self._heaps[model]
        return batch

    def discard_requests(self, requests: Collection[object]) -> None:
        """Remove what waits of these requests."""
        if not requests:
            return
        for model, heap in list(self._heaps.items()):
            kept = [entry for entry in heap if entry[2].request not in requests]
            if len(kept) == len(heap):
                continue
            self.num_rows -= len(heap) - len(kept)
            self.num_tokens -= sum(
                len(text.values) for *_, text in heap if text.request in requests
            )
            heapq.heapify(kept)
            self._heaps[model] = kept
            if not kept:
                del self._heaps[model]
