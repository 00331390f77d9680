"""Measure texts per CPU-second of several engines, interleaved, so that all share disturbances.

Speed depends on how long texts are and not on what they say, so two lengths stand for all: short
texts are those at hand cut at 32 tokens, long ones are as long as the model reads.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from serving.engine.engine import batch_rows

Batch = list[np.ndarray]
Infer = Callable[[Sequence[np.ndarray]], object]
Name = TypeVar("Name")

SHORT = 32  # tokens
NUM_SHORT = 64  # texts
BUDGETS = (64, 128, 256, 512)  # of tokens computed at once


def make_workload(
    rows: Sequence[np.ndarray], num_tokens: int, max_length: int, short_length: int = SHORT
) -> dict[str, list[Batch]]:
    """Return batches of "short" and of "long" texts, `num_tokens` at once."""
    short = [row[:short_length] for row in rows[:NUM_SHORT]]
    endless = np.concatenate([rows[i % len(rows)] for i in range(max(64, len(rows)))])
    long = [np.resize(np.roll(endless, -7 * i), max_length) for i in range(4)]
    return {"short": batch_rows(short, num_tokens), "long": batch_rows(long, num_tokens)}


def measure_interleaved(
    engines: Mapping[Name, tuple[Infer, Mapping[str, Sequence[Batch]]]], rounds: int, seconds: float
) -> dict[Name, dict[str, float]]:
    """Return texts per CPU-second of each engine on each kind of its texts.

    Medians of `rounds` turns of `seconds`. Every engine first runs every batch once, uncounted.
    """
    for infer, workload in engines.values():
        for batch in itertools.chain.from_iterable(workload.values()):
            infer(batch)
    turns: dict[Name, dict[str, list[float]]] = {name: {} for name in engines}
    for _ in range(rounds):
        for name, (infer, workload) in engines.items():
            for kind, batches in workload.items():
                turns[name].setdefault(kind, []).append(_measure_turn(infer, batches, seconds))
    return {
        name: {kind: statistics.median(speeds) for kind, speeds in of_engine.items()}
        for name, of_engine in turns.items()
    }


def _measure_turn(infer: Infer, batches: Sequence[Batch], seconds: float) -> float:
    """Return texts per CPU-second of one engine, over about `seconds` and at least one pass.

    CPU seconds are those of the engine, however busy the machine is with other things.
    """
    num_texts, started = 0, time.process_time()
    while True:
        for batch in batches:
            infer(batch)
            num_texts += len(batch)
        elapsed = time.process_time() - started
        if elapsed >= seconds:
            return num_texts / elapsed
