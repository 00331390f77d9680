"""Measure requests while an endpoint loses a replica, is upgraded, scaled and overloaded.

Requests come at half of the rate that the endpoint reached in a closed loop, at times that do not
depend on its responses, so every request that waits or fails counts. Meanwhile a replica is killed,
a new version deployed, a canary promoted and a broken one rolled back automatically, requests of
2,048 texts are sent, and 200 at once; another endpoint scales from one replica to two and back; and
at last twice the capacity is offered.

Then every fault of `faults.py` happens to `bertha serve` under an even stream of --rate
requests a second: its processes are killed one kind after the other, its registry, disk, S3 and
clock are broken and mended.

    python benchmarks/upheaval.py --seconds 60 [--only calm killed] [--bundle runs/reviews/bundle]
    python benchmarks/upheaval.py --seconds 10 --only haproxy-killed s3-503

Writes benchmarks/results/upheaval.json.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import bundles
from contenders import CORES
from faults import FAULTS, Fault, format_faults, group_faults, try_fault
from places import PLACES, NotPossible, Place
from recovery import is_sound
from serve import CACHE, RESULTS
from servers import (
    Server,
    ServerStartError,
    exit_on_sigterm,
    find_free_port,
    finish_load,
    start_load,
)
from texts import sample_texts
from upheavals import (
    NAME,
    PATH,
    UPHEAVALS,
    EndpointUnderTest,
    Record,
    do_nothing,
    run_scaling,
    run_under_load,
    wait_until,
)

from serving.deployment.config import EndpointConfig
from serving.registry.registry import Registry
from trainers.tracking import provenance

DOWNSCALE_SECONDS = 5.0
FAULTS_BY_NAME = {each.name: each for each in FAULTS}


def build_endpoint_config(
    registry: Registry, port: int, min_replicas: int, max_replicas: int
) -> EndpointConfig:
    """Return the settings of an endpoint under test."""
    return EndpointConfig(
        registry=registry.address,
        port=port,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        downscale_seconds=DOWNSCALE_SECONDS,
    )


def run_endpoint(options: argparse.Namespace, min_replicas: int, cases: list[str]) -> list[Record]:
    """Start an endpoint of at least `min_replicas` and return the records of `cases`."""
    with tempfile.TemporaryDirectory(prefix="bertha-bench-") as directory:
        registry = _deploy_first(str(Path(directory) / "registry"), options.bundle)
        bodies, port = Path(directory) / "bodies.json", find_free_port()
        texts = write_bodies(bodies, options.texts)
        settings = build_endpoint_config(registry, port, min_replicas, CORES).model_dump_json()
        command = [sys.executable, str(Path(__file__).resolve()), "--be-endpoint", settings]
        with Server(command, port, {}, Path(directory) / "log") as server:
            server.wait_until_ready(PATH, texts[0])
            closed = {"concurrency": 16 * min_replicas, "seconds": max(2.0, options.seconds / 4)}
            load = finish_load(start_load(port, PATH, bodies, **closed))
            capacity = load["requests_per_second"]
            print(f"{min_replicas} of {CORES} replicas: {capacity:.1f} requests/s", flush=True)
            endpoint = EndpointUnderTest(
                server, registry, options.bundle, bodies, options.seconds, capacity
            )
            return _run_cases(endpoint, cases)


def _run_cases(endpoint: EndpointUnderTest, cases: list[str]) -> list[Record]:
    records = []
    for case in cases:
        if case == "scaled":
            records += run_scaling(endpoint)
        elif case == "flooded":
            records.append(
                {"case": case} | run_under_load(endpoint, 2 * endpoint.capacity, do_nothing)
            )
        else:
            load = run_under_load(endpoint, endpoint.capacity / 2, UPHEAVALS[case])
            records.append({"case": case} | load)
        print(f"{records[-1]['case']}: {records[-1]['happened']}", flush=True)
    return records


def run_faults(options: argparse.Namespace, faults: list[Fault]) -> list[Record]:
    """Try faults of one place on an endpoint, one after the other; return their records.

    What cannot be tried has a record that says why.
    """
    records: list[Record] = []
    reason = ""
    try:
        with tempfile.TemporaryDirectory(prefix="bertha-bench-") as directory:
            root = Path(directory, "place")
            root.mkdir(mode=0o700)
            with PLACES[faults[0].place](root) as place:
                _try_faults(options, faults, place, records)
    except (NotPossible, ServerStartError) as error:
        reason = str(error)
    skipped = [each.name for each in faults[len(records) :]]
    return records + [{"case": name, "skipped": reason} for name in skipped]


def _try_faults(
    options: argparse.Namespace, faults: list[Fault], place: Place, records: list[Record]
) -> None:
    """Append a record to `records` for each fault."""
    registry = _deploy_first(place.registry, options.bundle)
    bodies, port, number = place.root.parent / "bodies.json", find_free_port(), str(CORES)
    texts = write_bodies(bodies, options.texts)
    command = [sys.executable, "-m", "serving", "run", NAME, "--registry", place.registry]
    command += ["--port", str(port), "--replicas", number, "--max-replicas", number]
    with Server(command, port, place.environment, place.root.parent / "log") as server:
        server.wait_until_ready(PATH, texts[0])
        endpoint = EndpointUnderTest(
            server, registry, options.bundle, bodies, options.seconds, options.rate
        )
        for fault in faults:
            if not wait_until(lambda: is_sound(endpoint)):  # the fault before has ended it
                server.restart()
                server.wait_until_ready(PATH, texts[0])
            records.append(try_fault(endpoint, place, fault, options.rate))
            print(f"{fault.name}: {records[-1]['happened']}", flush=True)


def _deploy_first(address: str, bundle: Path) -> Registry:
    """Return a registry at `address` in which `bundle` is live."""
    registry = Registry.open(address)
    registry.deploy(NAME, registry.register(bundle, NAME))
    return registry


def write_bodies(path: Path, kind: str) -> list[str]:
    """Write the bodies of requests to a file, and return them."""
    texts = [json.dumps({"inputs": text}) for text in sample_texts(kind)]
    path.write_text(json.dumps(texts))
    return texts


def format_table(records: list[Record]) -> str:
    """Format a Markdown table, a line a case."""
    lines = [
        "| case | requests/s offered | answered | refused | failed | p50 ms | p99 ms | max ms "
        "| 429 median ms | MB first, most, last | what happened, seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in records:
        latencies, refusals = each["milliseconds"], each["refused_milliseconds"]
        refused = each["statuses"].get("429", 0)
        memory = each["megabytes"] or [0.0]
        cells = [
            each["case"],
            f"{each['rate']:.1f}",
            str(each["statuses"].get("200", 0)),
            str(refused),
            str(each["failed"] - refused),
            *(f"{latencies.get(name, 0.0):.1f}" for name in ("p50", "p99", "max")),
            f"{refusals['p50']:.1f}" if refusals else "",
            f"{memory[0]:.0f}, {max(memory):.0f}, {memory[-1]:.0f}",
            f"{each['happened']}, {each['took_seconds']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def serve_endpoint(settings: str) -> None:
    """Serve the endpoint under test until SIGTERM, in a process of its own."""
    from serving.deployment import app  # imports Ray, which would slow the measuring process

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with app.serve_locally(EndpointConfig(**json.loads(settings))):
            threading.Event().wait()
    except KeyboardInterrupt:
        return


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    cases = [*UPHEAVALS, "flooded", "scaled", *FAULTS_BY_NAME]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each case")
    parser.add_argument("--only", nargs="+", choices=cases, default=cases, metavar="CASE")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, of a fault")
    parser.add_argument("--texts", choices=("short", "long"), default="short")
    parser.add_argument("--bundle", type=Path, help="default: the one serve.py measures")
    parser.add_argument("--out", type=Path, default=RESULTS / "upheaval.json")
    parser.add_argument("--be-endpoint", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Run the cases, print the tables and store the records."""
    options = parse_arguments()
    if options.be_endpoint:
        serve_endpoint(options.be_endpoint)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    exit_on_sigterm()
    if options.bundle is None:
        run = bundles.RUN_BUNDLE if bundles.RUN_BUNDLE.exists() else None
        options.bundle = bundles.copy_without_engines(run, CACHE / "plain")
    stored = {"environment": provenance.describe_environment(), "seconds": options.seconds}
    records: list[Record] = []
    fault_records: list[Record] = []

    def store() -> None:
        found = {"records": records, "rate": options.rate, "faults": fault_records}
        options.out.write_text(json.dumps(stored | found, indent=1) + "\n")

    common = [case for case in options.only if case in UPHEAVALS or case == "flooded"]
    records += run_endpoint(options, CORES, common) if common else []
    records += run_endpoint(options, 1, ["scaled"]) if "scaled" in options.only else []
    store()
    faults = [FAULTS_BY_NAME[case] for case in options.only if case in FAULTS_BY_NAME]
    for group in group_faults(faults):
        fault_records += run_faults(options, group)
        store()  # what was measured stays, should a later fault end this process
    if records:
        print("\n" + format_table(records))
    if fault_records:
        print("\n" + format_faults(fault_records))


if __name__ == "__main__":
    main()
