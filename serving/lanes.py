"""The order of waiting rows: which go next into the model, together. Pure; knows no clock.

Rows wait in lanes, one for each owner and length class, so that what is computed together is of
nearly one length. The next batch is headed by the row that is due first. A row is due some multiple
of its request's own work after it came: little work overtakes much, and much never starves. The
batch is filled from the head's lane, then from the lanes next to it, within a budget of padded
tokens.

    lanes = Lanes(token_budget=512)
    lanes.add(Row("sentiment", values, due=12.5, ticket=request))
    for row in lanes.take(): ...
"""

import bisect
import heapq
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

# Upper ends of the length classes, in tokens: each within a quarter of the next, and below the
# first the model's fixed costs hide the length.
CLASSES = (16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256, 320, 400, 512, 768, 1024)
# A batch more costs about as much as this many tokens, so a row may be padded by as many to ride
# along with longer ones.
BATCH_TOKENS = 16


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


@dataclass(slots=True)
class _Batch:
    """Rows that go together, their longest and shortest length."""

    rows: list[Row]
    longest: int
    shortest: int

    def takes(self, row: Row, token_budget: int) -> bool:
        """Whether `row` may join: within the budget, and little padded."""
        longest = max(self.longest, len(row.values))
        shortest = min(self.shortest, len(row.values))
        alike = longest <= 1.25 * shortest or longest - shortest <= BATCH_TOKENS
        return alike and longest * (len(self.rows) + 1) <= token_budget

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.longest = max(self.longest, len(row.values))
        self.shortest = min(self.shortest, len(row.values))


_Heap = list[tuple[float, int, Row]]  # the row due first on top; rows due at once in their order


class Lanes:
    """Waiting rows. Not safe for threads; whoever shares it holds a lock."""

    def __init__(self, token_budget: int) -> None:
        self.token_budget = token_budget
        self.num_rows = 0
        self.num_tokens = 0
        self._lanes: dict[Hashable, dict[int, _Heap]] = {}
        self._order = count()

    def add(self, row: Row) -> None:
        """Let `row` wait."""
        of_owner = self._lanes.setdefault(row.owner, {})
        heap = of_owner.setdefault(_class_of(len(row.values)), [])
        heapq.heappush(heap, (row.due, next(self._order), row))
        self.num_rows += 1
        self.num_tokens += len(row.values)

    def take(self) -> list[Row]:
        """The rows of the next batch, of one owner; [] where nothing waits.

        Within the budget, but for a row that is longer than it all by itself.
        """
        if not self._lanes:
            return []
        owner, index = self._first()
        near = sorted(self._lanes[owner], key=lambda other: (abs(other - index), other))
        first = self._pop(owner, index)
        batch = _Batch([first], len(first.values), len(first.values))
        for lane in near:  # the head's own, then the nearest in length
            while (row := self._top(owner, lane)) and batch.takes(row, self.token_budget):
                batch.add(self._pop(owner, lane))
        return batch.rows

    def discard(self, ticket: object) -> None:
        """Take out what waits of a request."""
        for owner, of_owner in list(self._lanes.items()):
            for index, heap in list(of_owner.items()):
                kept = [entry for entry in heap if entry[2].ticket is not ticket]
                self.num_rows -= len(heap) - len(kept)
                self.num_tokens -= sum(
                    len(row.values) for _, _, row in heap if row.ticket is ticket
                )
                heapq.heapify(kept)
                of_owner[index] = kept
                self._forget(owner, index)

    def _first(self) -> tuple[Hashable, int]:
        """The lane whose top is due first."""
        places = [(owner, index) for owner, lanes in self._lanes.items() for index in lanes]
        return min(places, key=lambda place: self._lanes[place[0]][place[1]][0][:2])

    def _top(self, owner: Hashable, index: int) -> Row | None:
        heap = self._lanes.get(owner, {}).get(index)
        return heap[0][2] if heap else None

    def _pop(self, owner: Hashable, index: int) -> Row:
        row = heapq.heappop(self._lanes[owner][index])[2]
        self.num_rows -= 1
        self.num_tokens -= len(row.values)
        self._forget(owner, index)
        return row

    def _forget(self, owner: Hashable, index: int) -> None:
        """Drop a lane that is empty, and an owner of whom nothing waits."""
        of_owner = self._lanes[owner]
        if not of_owner[index]:
            del of_owner[index]
        if not of_owner:
            del self._lanes[owner]


def _class_of(length: int) -> int:
    """The number of the length class; what is longer than all classes shares the last."""
    return bisect.bisect_left(CLASSES, length)
