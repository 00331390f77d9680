"""Measure one row: start its server, warm it up, run every load and stop it."""

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
from contender import Contender, LaunchContext
from contenders import CORES
from servers import CpuUsage, Server, find_free_port, finish_load, memory_megabytes, start_load

SHARES = (0.25, 0.5, 0.75, 0.9)  # of the closed loop's rate, in the open loop
WARM_CONCURRENCY = 8


@dataclass(frozen=True)
class Bench:
    """Settings of all measurements. plain, built: the bundle without and with engines."""

    options: argparse.Namespace
    plain: Path
    built: Path
    texts: dict[str, list[str]]


Record = dict[str, Any]


def measure_server(bench: Bench, contender: Contender, directory: Path) -> list[Record]:
    """Start a server and return the records of all its measurements."""
    bundle, port = bench.built if contender.uses_chosen_engine else bench.plain, find_free_port()
    command = contender.command(LaunchContext(str(contender.python), port, bundle))
    environment = {"BUNDLE": str(bundle), "HF_HUB_OFFLINE": "1", **contender.environment}
    bodies = {}
    for kind, texts in bench.texts.items():
        bodies[kind] = directory / f"{kind}.json"
        bodies[kind].write_text(json.dumps([contender.body(text) for text in texts]))
    log = directory / "log"
    with Server(command, port, environment, log) as server:
        first = json.loads(next(iter(bodies.values())).read_text())[0]
        server.wait_until_ready(contender.path, first)
        return [
            record
            for kind in bench.texts
            for record in _measure_texts(bench, contender, server, bodies[kind], kind)
        ]


def _measure_texts(
    bench: Bench, contender: Contender, server: Server, bodies: Path, kind: str
) -> Iterator[Record]:
    options = bench.options

    def measure_case(load: str, half_cpu: bool = False, **flags: Any) -> Record:
        with burn_cpu(CORES / 2 if half_cpu else 0):
            results = measure_load(server, contender.path, bodies, seconds=options.seconds, **flags)
        return {"texts": kind, "load": load, "half_cpu": half_cpu, **results}

    warm = {"seconds": options.warm_up, "concurrency": WARM_CONCURRENCY}
    finish_load(start_load(server.port, contender.path, bodies, **warm))
    rate = 0.0
    for concurrency in options.concurrency:
        record = measure_case(f"closed {concurrency}", concurrency=concurrency)
        rate = max(rate, record["requests_per_second"])
        yield record
    if options.half_cpu:
        most = max(options.concurrency)
        yield measure_case(f"closed {most}", True, concurrency=most)
    for share in SHARES if options.open_loop and rate else ():
        yield measure_case(f"open {share}", rate=share * rate, concurrency=WARM_CONCURRENCY)


def measure_load(server: Server, path: str, bodies: Path, **flags: Any) -> Record:
    """Run one load; return its results and the CPU and memory that it took."""
    processes = server.processes()
    usage = CpuUsage(processes)
    started = time.perf_counter()
    results = finish_load(start_load(server.port, path, bodies, **flags))
    wall = time.perf_counter() - started
    answered = max(1, results["statuses"].get("200", 0))
    return {
        **results,
        "server_cpu_seconds_a_request": usage.seconds() / answered,
        "server_megabytes": memory_megabytes(processes),
        "client_cpu_share": results["client_cpu_seconds"] / wall,
    }


def measure_ceiling(bench: Bench, name: str) -> list[Record]:
    """Measure the throughput of the cores without a server, for each kind of text."""
    fp32 = name == "ceiling-fp32"
    engine = "torch fp32" if fp32 else bundles.chosen_engine(bench.built)
    bundle = bench.plain if fp32 else bench.built
    return [
        {
            "texts": kind,
            "load": "",
            "half_cpu": False,
            "engine": engine,
            **ceiling.compute_in_processes(bundle, engine, texts, CORES, bench.options.seconds),
        }
        for kind, texts in bench.texts.items()
    ]


@contextmanager
def burn_cpu(cores: float) -> Iterator[None]:
    """Keep `cores` processes spinning meanwhile, rounded, at least one; none if it is 0."""
    count = max(1, round(cores)) if cores else 0
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
