"""The throughput of the cores without a server: a process a core, of one thread each.

The same texts as the servers get, encoded beforehand and batched as Bertha batches them. All
processes compute at once, for the same time.
"""

import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.engine.engine import Engine, batch_rows, split_rows


def compute_in_processes(
    bundle: Path, engine: str, texts: Sequence[str], processes: int, seconds: float
) -> dict[str, float]:
    """Measure texts a second of all processes together, and CPU seconds a text."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(processes), context.Queue()
    arguments = (bundle, engine, list(texts), seconds, barrier, answers)
    workers = [context.Process(target=_compute, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    turns = [answers.get(timeout=120 + 2 * seconds) for _ in workers]
    for worker in workers:
        worker.join()
    return {
        "requests_per_second": sum(count / wall for count, wall, _ in turns),
        "server_cpu_seconds_a_request": sum(cpu for *_, cpu in turns) / sum(n for n, *_ in turns),
    }


def _compute(
    bundle: Path, name: str, texts: list[str], seconds: float, barrier: Any, answers: Any
) -> None:
    engine = Engine.load(bundle, name)
    batches = batch_rows(split_rows(engine.encode(texts)[0]), engine.batch_tokens)
    for batch in batches[:: max(1, len(batches) // 8)]:  # warm up on every length
        engine.infer_rows(batch)
    barrier.wait()
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    order = np.random.default_rng(0).permutation(len(batches))
    for index in itertools.cycle(order):
        engine.infer_rows(batches[index])
        count += len(batches[index])
        if time.perf_counter() - started >= seconds:
            break
    answers.put((count, time.perf_counter() - started, time.process_time() - cpu))
