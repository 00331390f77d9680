"""One turn of one row: its server started, warmed up, measured under every load, and ended.

The last row is no server: the ceiling of the machine. Knows no rounds and no table.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundles
import ceiling
from contender import Contender, Place
from contenders import CORES
from servers import Server, Usage, begin_load, finish_load, free_port, megabytes

SHARES = (0.25, 0.5, 0.75, 0.9)  # of the closed loop's rate, in the open loop
WARM_CONCURRENCY = 8


@dataclass(frozen=True)
class Bench:
    """What all measurements share. plain, built: the bundle without and with engines."""

    options: argparse.Namespace
    plain: Path
    built: Path
    texts: dict[str, list[str]]


Record = dict[str, Any]


def of_server(bench: Bench, contender: Contender, directory: Path) -> list[Record]:
    """Every measurement of one server, started for it."""
    bundle, port = bench.built if contender.built else bench.plain, free_port()
    command = contender.command(Place(str(contender.python), port, bundle))
    environment = {"BUNDLE": str(bundle), "HF_HUB_OFFLINE": "1", **contender.environment}
    bodies = {}
    for kind, texts in bench.texts.items():
        bodies[kind] = directory / f"{kind}.json"
        bodies[kind].write_text(json.dumps([contender.body(text) for text in texts]))
    log = directory / "log"
    with Server(command, port, environment, log) as server:
        first = json.loads(next(iter(bodies.values())).read_text())[0]
        server.wait(contender.path, first)
        return [
            record
            for kind in bench.texts
            for record in _of_kind(bench, contender, server, bodies[kind], kind)
        ]


def _of_kind(
    bench: Bench, contender: Contender, server: Server, bodies: Path, kind: str
) -> Iterator[Record]:
    options = bench.options

    def measured(load: str, half_cpu: bool = False, **how: Any) -> Record:
        with busy(CORES / 2 if half_cpu else 0):
            found = measure(server, contender.path, bodies, seconds=options.seconds, **how)
        return {"texts": kind, "load": load, "half_cpu": half_cpu, **found}

    warm = {"seconds": options.warm_up, "concurrency": WARM_CONCURRENCY}
    finish_load(begin_load(server.port, contender.path, bodies, **warm))
    rate = 0.0
    for concurrency in options.concurrency:
        record = measured(f"closed {concurrency}", concurrency=concurrency)
        rate = max(rate, record["requests_per_second"])
        yield record
    if options.half_cpu:
        most = max(options.concurrency)
        yield measured(f"closed {most}", True, concurrency=most)
    for share in SHARES if options.open_loop and rate else ():
        yield measured(f"open {share}", rate=share * rate, concurrency=WARM_CONCURRENCY)


def measure(server: Server, path: str, bodies: Path, **how: Any) -> Record:
    """One load, and what it cost the server and the client."""
    processes = server.processes()
    usage = Usage(processes)
    started = time.perf_counter()
    found = finish_load(begin_load(server.port, path, bodies, **how))
    wall = time.perf_counter() - started
    answered = max(1, found["statuses"].get("200", 0))
    return {
        **found,
        "server_cpu_seconds_a_request": usage.seconds() / answered,
        "server_megabytes": megabytes(processes),
        "client_cpu_share": found["client_cpu_seconds"] / wall,
    }


def of_ceiling(bench: Bench, name: str) -> list[Record]:
    """What the cores compute alone."""
    fp32 = name == "ceiling-fp32"
    engine = "torch fp32" if fp32 else bundles.engine_of(bench.built)
    place = bench.plain if fp32 else bench.built
    return [
        {
            "texts": kind,
            "load": "",
            "half_cpu": False,
            "engine": engine,
            **ceiling.measured(place, engine, texts, CORES, bench.options.seconds),
        }
        for kind, texts in bench.texts.items()
    ]


@contextmanager
def busy(cores: float) -> Iterator[None]:
    """As many processes as there are whole cores do nothing useful meanwhile; at least one."""
    count = max(1, round(cores)) if cores else 0
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
