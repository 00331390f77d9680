"""How many texts a CPU-second engines answer: in turns, so that what disturbs them is shared.

Speed depends on how long texts are and not on what they say, so two lengths stand for all: short
texts are those at hand cut at 32 tokens, long ones are as long as the model reads. Knows no engine,
only functions of rows.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from serving.models import Limits

Row = np.ndarray
Batch = list[Row]
Infer = Callable[[Sequence[Row]], object]

SHORT = 32  # tokens
BATCH_TOKENS = Limits().max_batch_tokens  # of a batch, as the server composes them
NUM_SHORT = 64  # texts


def workloads(
    rows: Sequence[Row], max_length: int, short_length: int = SHORT
) -> dict[str, list[Batch]]:
    """Batches of "short" and "long" texts, as many at once as the server takes."""
    endless = np.concatenate([rows[i % len(rows)] for i in range(max(64, len(rows)))])
    num_long = max(1, BATCH_TOKENS // max_length)
    long = [np.resize(np.roll(endless, -7 * i), max_length) for i in range(num_long)]
    return {"short": batches([row[:short_length] for row in rows[:NUM_SHORT]]), "long": [long]}


def batches(rows: Sequence[Row]) -> list[Batch]:
    """Rows in their order, as many together as a batch of the server holds."""
    found: list[Batch] = [[]]
    for row in rows:
        if found[-1] and sum(map(len, found[-1])) + len(row) > BATCH_TOKENS:
            found.append([])
        found[-1].append(row)
    return found


def interleaved(
    engines: Mapping[str, Infer],
    work: Mapping[str, Sequence[Batch]],
    rounds: int,
    seconds: float,
) -> dict[str, dict[str, float]]:
    """Texts a CPU-second of each engine on each workload: medians of `rounds` turns of `seconds`.

    Every engine first answers every batch once, uncounted.
    """
    for infer in engines.values():
        for batch in itertools.chain.from_iterable(work.values()):
            infer(batch)
    found: dict[str, dict[str, list[float]]] = {
        name: {kind: [] for kind in work} for name in engines
    }
    for _ in range(rounds):
        for kind, batches in work.items():
            for name, infer in engines.items():
                found[name][kind].append(turn(infer, batches, seconds))
    return {
        name: {kind: statistics.median(speeds) for kind, speeds in of_engine.items()}
        for name, of_engine in found.items()
    }


def turn(infer: Infer, batches: Sequence[Batch], seconds: float) -> float:
    """Texts a CPU-second of one engine, for about `seconds`, and at least one pass over `batches`.

    CPU seconds are what the engine took, however busy the machine is with other things.
    """
    texts, started = 0, time.process_time()
    while True:
        for batch in batches:
            infer(batch)
            texts += len(batch)
        elapsed = time.process_time() - started
        if elapsed >= seconds:
            return texts / elapsed
