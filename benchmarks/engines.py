"""How many texts a second each engine of a bundle computes, with no server around it.

The ceiling that a server can reach: one process of one thread, and two of one thread each, on short
texts (rows of the recipe cut at 32 tokens) and long ones (as long as the model reads), composed as
the server composes batches. Engines take turns, round after round; the table gives medians. Texts a
CPU-second are the fairer figure on a machine that others use too.

    python benchmarks/engines.py runs/reviews/bundle --rounds 5 --seconds 2

A copy of the bundle is built with every kind of engine that runs here, faithful or not; the bundle
itself stays as it is. Writes benchmarks/results/engines.json.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from serving.build import build
from serving.engine import Engine, split
from serving.held_out import Rows, rows_of
from serving.kinds import KINDS
from serving.speed import Batch, workloads
from trainers import bundle, provenance
from trainers.card import Card, read

RESULTS = Path(__file__).parent / "results"
PROCESSES = (1, 2)


@dataclass(frozen=True)
class Turn:
    """What one process did: texts, and the seconds of wall and CPU they took."""

    texts: int
    seconds: float
    cpu_seconds: float


class Worker:
    """A process that holds every engine and computes when told."""

    def __init__(self, place: Path, names: list[str], work: dict[str, list[Batch]]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        process = context.Process(target=_serve, args=(other, place, names, work), daemon=True)
        process.start()
        other.close()

    def wait(self) -> Any:
        """What the process says next."""
        return self.pipe.recv()


def _serve(pipe: Connection, place: Path, names: list[str], work: dict[str, list[Batch]]) -> None:
    """Load every engine, answer every batch once, then take turns until the pipe closes."""
    engines = {name: Engine.load(place, name) for name in names}
    for engine, batch in itertools.product(engines.values(), itertools.chain(*work.values())):
        engine.infer_rows(batch)
    pipe.send("ready")
    while True:
        try:
            name, kind, seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(_turn(engines[name], work[kind], seconds))


def _turn(engine: Engine, batches: list[Batch], seconds: float) -> Turn:
    texts, started, cpu = 0, time.perf_counter(), time.process_time()
    for batch in itertools.cycle(batches):
        engine.infer_rows(batch)
        texts += len(batch)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    return Turn(texts, elapsed, time.process_time() - cpu)


def raced(
    workers: list[Worker], names: list[str], kinds: list[str], rounds: int, seconds: float
) -> dict[str, list[list[Turn]]]:
    """The turns of "engine / kind / processes", a list a round."""
    found: dict[str, list[list[Turn]]] = {}
    for done, _ in enumerate(range(rounds), 1):
        for kind, name, count in itertools.product(kinds, names, PROCESSES):
            for worker in workers[:count]:
                worker.pipe.send((name, kind, seconds))
            turns = [worker.wait() for worker in workers[:count]]
            found.setdefault(f"{name} / {kind} / {count}", []).append(turns)
        print(f"round {done} of {rounds}", flush=True)
    return found


def speeds(rounds: list[list[Turn]]) -> dict[str, float]:
    """Medians over the rounds: texts a second of all processes, and a CPU-second."""
    return {
        "texts_per_second": statistics.median(
            sum(turn.texts / turn.seconds for turn in turns) for turns in rounds
        ),
        "texts_per_cpu_second": statistics.median(
            sum(turn.texts for turn in turns) / sum(turn.cpu_seconds for turn in turns)
            for turns in rounds
        ),
    }


def table(figures: dict[str, dict[str, float]], card: Card) -> str:
    """A line an engine."""
    agreement = {each.name: each.agreement for each in card.engines}
    lines = [
        "| engine | agreement | short, 1 x 1 | short, 2 x 1 | long, 1 x 1 | long, 2 x 1 "
        "| short a CPU-second | long a CPU-second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in agreement:
        cells = [f"{agreement[name]:.2%}"]
        for measure, kinds in (("texts_per_second", PROCESSES), ("texts_per_cpu_second", (1,))):
            for kind, count in itertools.product(("short", "long"), kinds):
                cells.append(f"{figures[f'{name} / {kind} / {count}'][measure]:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(place: Path, rows: Rows, card: Card, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of the built bundle at `place`."""
    names = [each.name for each in card.engines]
    work = workloads(split(rows.held_out), card.max_length)
    workers = [Worker(place, names, work) for _ in range(max(PROCESSES))]
    for worker in workers:
        worker.wait()
    turns = raced(workers, names, list(work), options.rounds, options.seconds)
    figures = {key: speeds(rounds) for key, rounds in turns.items()}
    print(table(figures, card))
    return {
        "environment": provenance.environment(),
        "bundle": {"task": card.task, "max_length": card.max_length, "rows": rows.origin},
        "rounds": options.rounds,
        "seconds": options.seconds,
        "engines": [each.model_dump(mode="json", exclude={"files"}) for each in card.engines],
        "figures": figures,
    }


def main() -> None:
    """Build a copy of the bundle, race its engines, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=Path, help="default: those the recipe held out")
    parser.add_argument("--only", action="append", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.json")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    card = read(options.bundle)
    rows = rows_of(card, bundle.load_encoder(options.bundle, card), options.texts)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "bundle"
        shutil.copytree(options.bundle, place)
        build(place, candidates=options.only, rows=rows, allow=list(KINDS), rounds=1)
        results = measured(place, rows, read(place), options)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
