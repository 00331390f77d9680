"""How many texts a CPU-second engines answer: in turns, so that what disturbs them is shared.

Speed depends on how long texts are and not on what they say, so two lengths stand for all: short
texts are those at hand cut at 32 tokens, long ones are as long as the model reads. Knows no
backend, only functions of rows.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from serving.engine.engine import batches

Row = np.ndarray
Batch = list[Row]
Infer = Callable[[Sequence[Row]], object]
Name = TypeVar("Name")

SHORT = 32  # tokens
NUM_SHORT = 64  # texts
BUDGETS = (64, 128, 256, 512)  # of tokens computed at once


def workload(
    rows: Sequence[Row], num_tokens: int, max_length: int, short_length: int = SHORT
) -> dict[str, list[Batch]]:
    """Batches of "short" and of "long" texts, `num_tokens` at once."""
    short = [row[:short_length] for row in rows[:NUM_SHORT]]
    endless = np.concatenate([rows[i % len(rows)] for i in range(max(64, len(rows)))])
    long = [np.resize(np.roll(endless, -7 * i), max_length) for i in range(4)]
    return {"short": batches(short, num_tokens), "long": batches(long, num_tokens)}


def interleaved(
    runs: Mapping[Name, tuple[Infer, Mapping[str, Sequence[Batch]]]], rounds: int, seconds: float
) -> dict[Name, dict[str, float]]:
    """Texts a CPU-second of each engine on each kind of its texts: medians of `rounds` turns of
    `seconds`.

    Every engine first answers every batch once, uncounted.
    """
    for infer, work in runs.values():
        for batch in itertools.chain.from_iterable(work.values()):
            infer(batch)
    found: dict[Name, dict[str, list[float]]] = {name: {} for name in runs}
    for _ in range(rounds):
        for name, (infer, work) in runs.items():
            for kind, some in work.items():
                found[name].setdefault(kind, []).append(turn(infer, some, seconds))
    return {
        name: {kind: statistics.median(speeds) for kind, speeds in of_engine.items()}
        for name, of_engine in found.items()
    }


def turn(infer: Infer, some: Sequence[Batch], seconds: float) -> float:
    """Texts a CPU-second of one engine, for about `seconds`, and at least one pass.

    CPU seconds are what the engine took, however busy the machine is with other things.
    """
    texts, started = 0, time.process_time()
    while True:
        for batch in some:
            infer(batch)
            texts += len(batch)
        elapsed = time.process_time() - started
        if elapsed >= seconds:
            return texts / elapsed
