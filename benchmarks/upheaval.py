"""Measure requests while an endpoint loses a replica, is upgraded, scaled and overloaded.

Requests come at half of the rate that the endpoint reached in a closed loop, at times that do not
depend on its responses, so every request that waits or fails counts. Meanwhile a replica is killed,
a new version deployed, a canary promoted and a broken one rolled back automatically; another
endpoint scales from one replica to two and back; and at last twice the capacity is offered.

    python benchmarks/upheaval.py --seconds 60 [--only calm killed] [--bundle runs/reviews/bundle]

Writes benchmarks/results/upheaval.json.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

import bundles
from contenders import CORES
from serve import CACHE, RESULTS
from servers import Server, exit_on_sigterm, find_free_port, finish_load, start_load
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
)

from serving.deployment.config import EndpointConfig
from serving.registry.registry import Registry
from trainers.tracking import provenance

DOWNSCALE_SECONDS = 5.0


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
        registry = Registry.open(str(Path(directory) / "registry"))
        registry.deploy(NAME, registry.register(options.bundle, NAME))
        bodies, port = Path(directory) / "bodies.json", find_free_port()
        texts = [json.dumps({"inputs": text}) for text in sample_texts(options.texts)]
        bodies.write_text(json.dumps(texts))
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


def main() -> None:
    """Run the cases, print the table and store the records."""
    cases = [*UPHEAVALS, "flooded", "scaled"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each case")
    parser.add_argument("--only", nargs="+", choices=cases, default=cases)
    parser.add_argument("--texts", choices=("short", "long"), default="short")
    parser.add_argument("--bundle", type=Path, help="default: the one serve.py measures")
    parser.add_argument("--out", type=Path, default=RESULTS / "upheaval.json")
    parser.add_argument("--be-endpoint", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be_endpoint:
        serve_endpoint(options.be_endpoint)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    exit_on_sigterm()
    if options.bundle is None:
        run = bundles.RUN_BUNDLE if bundles.RUN_BUNDLE.exists() else None
        options.bundle = bundles.copy_without_engines(run, CACHE / "plain")
    common = [case for case in options.only if case != "scaled"]
    records = run_endpoint(options, CORES, common) if common else []
    records += run_endpoint(options, 1, ["scaled"]) if "scaled" in options.only else []
    print("\n" + format_table(records))
    stored = {"environment": provenance.describe_environment(), "seconds": options.seconds}
    options.out.write_text(json.dumps(stored | {"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
