"""Measure texts per second of several engines, interleaved, so that all share disturbances.

On the CPU a second is one of its own time, however busy the machine is with other things; of an
engine beside it a second of wall time, at the end of which all answers are on the host.

Speed depends on how long texts are and not on what they say, so two lengths stand for all: short
texts are those at hand cut at 32 tokens, long ones are as long as the model reads.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from serving.engine.devices import CPU
from serving.engine.engine import batch_rows

Batch = list[np.ndarray]
Infer = Callable[[Sequence[np.ndarray]], object]
Name = TypeVar("Name")

SHORT = 32  # tokens
NUM_SHORT, NUM_LONG = 64, 4  # texts, at least
# Of tokens computed at once, on the CPU and on devices that compute thousands side by side.
CPU_BUDGETS, DEVICE_BUDGETS = (64, 128, 256, 512), (512, 1024, 2048, 4096, 8192, 16384)


def budgets_of(device: str) -> tuple[int, ...]:
    """Return the numbers of tokens to compute at once that are tried on a kind of device."""
    return CPU_BUDGETS if device == CPU else DEVICE_BUDGETS


def make_workload(
    rows: Sequence[np.ndarray], num_tokens: int, max_length: int, short_length: int = SHORT
) -> dict[str, list[Batch]]:
    """Return batches of "short" and of "long" texts, `num_tokens` at once, one full at least."""
    num_short = max(min(NUM_SHORT, len(rows)), num_tokens // short_length)
    short = [rows[i % len(rows)][:short_length] for i in range(num_short)]
    endless = np.concatenate([rows[i % len(rows)] for i in range(max(64, len(rows)))])
    num_long = max(NUM_LONG, num_tokens // max_length)
    long = [np.resize(np.roll(endless, -7 * i), max_length) for i in range(num_long)]
    return {"short": batch_rows(short, num_tokens), "long": batch_rows(long, num_tokens)}


def slowest_tokens_per_second(
    workload: Mapping[str, Sequence[Batch]], texts_per_second: Mapping[str, float]
) -> float:
    """Return the tokens per second of the kind of texts on which they are fewest."""

    def mean_length(batches: Sequence[Batch]) -> float:
        return float(np.mean([len(row) for batch in batches for row in batch]))

    return min(speed * mean_length(workload[kind]) for kind, speed in texts_per_second.items())


def measure_interleaved(
    engines: Mapping[Name, tuple[Infer, Mapping[str, Sequence[Batch]]]],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.process_time,
) -> dict[Name, dict[str, float]]:
    """Return texts per second of `clock` of each engine on each kind of its texts.

    Medians of `rounds` turns of `seconds`. Every engine first runs every batch once, uncounted.
    """
    for infer, workload in engines.values():
        for batch in itertools.chain.from_iterable(workload.values()):
            infer(batch)
    turns: dict[Name, dict[str, list[float]]] = {name: {} for name in engines}
    for _ in range(rounds):
        for name, (infer, workload) in engines.items():
            for kind, batches in workload.items():
                turns[name].setdefault(kind, []).append(
                    _measure_turn(infer, batches, seconds, clock)
                )
    return {
        name: {kind: statistics.median(speeds) for kind, speeds in of_engine.items()}
        for name, of_engine in turns.items()
    }


def _measure_turn(
    infer: Infer, batches: Sequence[Batch], seconds: float, clock: Callable[[], float]
) -> float:
    """Return texts per second of one engine, over about `seconds` and at least one pass."""
    num_texts, started = 0, clock()
    while True:
        for batch in batches:
            infer(batch)
            num_texts += len(batch)
        elapsed = clock() - started
        if elapsed >= seconds:
            return num_texts / elapsed
