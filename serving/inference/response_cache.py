"""Answers to texts that were asked before, by the engine that gave them; off unless given bytes.

An answer is the raw output of the model for one text, before any option of a protocol, so that
every protocol finds those of the others. What changes an output is in its key: the engine (one
version of a model, loaded once), the text as it was sent, and all that its request says of how it
is read. Kept in memory of one replica, and dropped with the engine.

    responses = ResponseCache(max_bytes=64 << 20)
    responses.keep(engine, "A warm film.", Answer(prediction, row, is_cut=False))
    responses.find(engine, ["A warm film.", "A dull one."])      # [Answer(...), None]
"""

import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.http.metrics import Sample
from serving.interface import Prediction, TextInput

ENTRY_BYTES = 400  # of Python's own for a key, an answer and their place


class Answer(NamedTuple):
    """What a model computes of one text.

    value: as of `Engine.infer_rows`, of windows pooled. row: the token ids. is_cut: whether the
    text is longer than what the model read.
    """

    value: Any
    row: np.ndarray
    is_cut: bool


class ResponseCache:
    """Answers within `max_bytes`, the least recently used dropped first. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[Hashable, Hashable], tuple[Answer, int]] = OrderedDict()
        self.num_bytes = self.num_hits = self.num_misses = 0

    def find(self, engine: Hashable, texts: Sequence[str]) -> list[Answer | None]:
        """Return the answer to each text, None where it is not kept."""
        if not self._max_bytes:
            return [None] * len(texts)
        found: list[Answer | None] = []
        for text in texts:
            key = (engine, input_key(text))
            entry = self._kept.get(key)
            if entry is not None:
                self._kept.move_to_end(key)
            found.append(None if entry is None else entry[0])
        self.num_hits += sum(answer is not None for answer in found)
        self.num_misses += sum(answer is None for answer in found)
        return found

    def keep(self, engine: Hashable, text: str, answer: Answer) -> None:
        """Keep an answer, unless it alone is larger than the cache."""
        key, size = (engine, input_key(text)), _count_bytes(text, answer)
        if size > self._max_bytes or key in self._kept:
            return
        # Copies: what a batch returns are views, each of which would hold the whole batch.
        value, row = _copy(answer.value), _copy(answer.row)
        self._kept[key] = (Answer(value, row, answer.is_cut), size)
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self.num_bytes -= freed

    def forget_engine(self, engine: Hashable) -> None:
        """Drop the answers of an engine."""
        for key in [key for key in self._kept if key[0] is engine]:
            self.num_bytes -= self._kept.pop(key)[1]

    def metric_samples(self) -> Iterator[tuple[Sample, float]]:
        """Yield the samples of a cache that is on."""
        if self._max_bytes:
            yield ("bertha_cache_hits_total", ()), self.num_hits
            yield ("bertha_cache_misses_total", ()), self.num_misses
            yield ("bertha_cache_texts", ()), len(self._kept)
            yield ("bertha_cache_bytes", ()), self.num_bytes


def input_key(text: str) -> Hashable:
    """Return what tells a text from all that may be answered otherwise."""
    if isinstance(text, TextInput):
        # All its attributes, those of later versions too.
        return (str(text), *(getattr(text, name) for name in TextInput.__slots__))
    return text


def _count_bytes(text: str, answer: Answer) -> int:
    size = ENTRY_BYTES + sys.getsizeof(text) + answer.row.nbytes
    if isinstance(text, TextInput):
        size += sum(sys.getsizeof(getattr(text, name)) for name in TextInput.__slots__)
        size += 32 * len(text.ids)
    if isinstance(answer.value, np.ndarray):
        return size + answer.value.nbytes
    if isinstance(answer.value, Prediction):
        return size + 64 * len(answer.value.scores)  # two floats and their places in tuples
    return size + sys.getsizeof(answer.value)


def _copy(value: Any) -> Any:
    """Return a copy that nobody can write to; other values cannot be changed anyway."""
    if not isinstance(value, np.ndarray):
        return value
    copied = value.copy()
    copied.setflags(write=False)
    return copied
