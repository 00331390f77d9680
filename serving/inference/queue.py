"""The order of waiting rows: which go next into the model, together. Pure; knows no clock.

Rows wait in lanes, one for each owner. The next batch is headed by the row that is due first, and
filled from its lane, in order, while its tokens are within the owner's budget: nothing is padded,
so texts of any length may go together. A row is due some multiple of its request's own work after
it came: little work overtakes much, and much never starves.

    lanes = Lanes({"sentiment": 256}.__getitem__)
    lanes.add(Row("sentiment", values, due=12.5, ticket=request))
    for row in lanes.take(): ...
"""

import heapq
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np


@dataclass(slots=True, eq=False)
class Row:
    """One encoded text that waits.

    owner: the model it is for; batches never mix owners. ticket: the request it belongs to, as the
    caller knows it.
    """

    owner: Hashable
    values: np.ndarray
    due: float
    ticket: Any
    position: int = 0


_Heap = list[tuple[float, int, Row]]  # the row due first on top; rows due at once in their order


class Lanes:
    """Waiting rows. Not safe for threads; whoever shares it holds a lock.

    budget_of: the most tokens of a batch of an owner.
    """

    def __init__(self, budget_of: Callable[[Any], int]) -> None:
        self._budget_of = budget_of
        self.num_rows = 0
        self.num_tokens = 0
        self._lanes: dict[Hashable, _Heap] = {}
        self._order = count()

    def add(self, row: Row) -> None:
        """Let `row` wait."""
        lane = self._lanes.setdefault(row.owner, [])
        heapq.heappush(lane, (row.due, next(self._order), row))
        self.num_rows += 1
        self.num_tokens += len(row.values)

    def take(self) -> list[Row]:
        """The rows of the next batch, of one owner; [] where nothing waits.

        Within the budget, but for a row that is longer than it all by itself.
        """
        if not self._lanes:
            return []
        owner = min(self._lanes, key=lambda each: self._lanes[each][0][:2])
        lane, batch, num_tokens = self._lanes[owner], list[Row](), 0
        budget = self._budget_of(owner)
        while lane and (not batch or num_tokens + len(lane[0][2].values) <= budget):
            row = heapq.heappop(lane)[2]
            num_tokens += len(row.values)
            batch.append(row)
        self.num_rows -= len(batch)
        self.num_tokens -= num_tokens
        if not lane:
            del self._lanes[owner]
        return batch

    def discard(self, ticket: object) -> None:
        """Take out what waits of a request."""
        for owner, lane in list(self._lanes.items()):
            kept = [entry for entry in lane if entry[2].ticket is not ticket]
            if len(kept) == len(lane):
                continue
            self.num_rows -= len(lane) - len(kept)
            self.num_tokens -= sum(len(row.values) for *_, row in lane if row.ticket is ticket)
            heapq.heapify(kept)
            self._lanes[owner] = kept
            if not kept:
                del self._lanes[owner]
