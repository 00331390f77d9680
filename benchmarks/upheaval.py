"""What requests notice while an endpoint is killed, upgraded, tried out, scaled and flooded.

Requests come at half of what the endpoint reached in a closed loop, at moments that do not depend
on its answers, so every one of them that waits or fails is seen. Meanwhile a replica is killed, a
new version deployed, a canary promoted and a broken one rolled back by the judge; an endpoint of
its own scales from one replica to two and back; and at last twice the capacity is offered.

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
from servers import Server, begin_load, end_in_order, finish_load, free_port
from texts import texts_of
from upheavals import NAME, PATH, UPHEAVALS, Record, Subject, calm, scaled, under_load

from serving.deployment.config import Endpoint
from serving.registry.registry import Registry
from trainers.tracking import provenance

DOWNSCALE_SECONDS = 5.0


def endpoint(registry: Registry, port: int, least: int, most: int) -> Endpoint:
    """The settings of an endpoint under test."""
    return Endpoint(
        registry=registry.address,
        port=port,
        min_replicas=least,
        max_replicas=most,
        downscale_seconds=DOWNSCALE_SECONDS,
    )


def tried(options: argparse.Namespace, least: int, cases: list[str]) -> list[Record]:
    """The records of `cases`, of one endpoint of at least so many replicas."""
    with tempfile.TemporaryDirectory(prefix="bertha-bench-") as place:
        registry = Registry.open(str(Path(place) / "registry"))
        registry.deploy(NAME, registry.register(options.bundle, NAME))
        bodies, port = Path(place) / "bodies.json", free_port()
        texts = [json.dumps({"inputs": text}) for text in texts_of(options.texts)]
        bodies.write_text(json.dumps(texts))
        settings = endpoint(registry, port, least, CORES).model_dump_json()
        command = [sys.executable, str(Path(__file__).resolve()), "--be-endpoint", settings]
        with Server(command, port, {}, Path(place) / "log") as server:
            server.wait(PATH, texts[0])
            closed = {"concurrency": 16 * least, "seconds": max(2.0, options.seconds / 4)}
            found = finish_load(begin_load(port, PATH, bodies, **closed))
            capacity = found["requests_per_second"]
            print(f"{least} of {CORES} replicas: {capacity:.1f} requests/s", flush=True)
            subject = Subject(server, registry, options.bundle, bodies, options.seconds, capacity)
            return _records(subject, cases)


def _records(subject: Subject, cases: list[str]) -> list[Record]:
    records = []
    for case in cases:
        if case == "scaled":
            records += scaled(subject)
        elif case == "flooded":
            records.append({"case": case} | under_load(subject, 2 * subject.capacity, calm))
        else:
            load = under_load(subject, subject.capacity / 2, UPHEAVALS[case])
            records.append({"case": case} | load)
        print(f"{records[-1]['case']}: {records[-1]['happened']}", flush=True)
    return records


def table(records: list[Record]) -> str:
    """A line a case."""
    lines = [
        "| case | requests/s offered | answered | refused | failed | p50 ms | p99 ms | max ms "
        "| 429 median ms | MB first, most, last | what happened, seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in records:
        took, refusals = each["milliseconds"], each["refused_milliseconds"]
        refused = each["statuses"].get("429", 0)
        memory = each["megabytes"] or [0.0]
        cells = [
            each["case"],
            f"{each['rate']:.1f}",
            str(each["statuses"].get("200", 0)),
            str(refused),
            str(each["failed"] - refused),
            *(f"{took.get(name, 0.0):.1f}" for name in ("p50", "p99", "max")),
            f"{refusals['p50']:.1f}" if refusals else "",
            f"{memory[0]:.0f}, {max(memory):.0f}, {memory[-1]:.0f}",
            f"{each['happened']}, {each['took_seconds']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def be_endpoint(settings: str) -> None:
    """What is started as the endpoint under test."""
    from serving.deployment import app  # Ray, which the measuring process must not pay for

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with app.running(Endpoint(**json.loads(settings))):
            threading.Event().wait()
    except KeyboardInterrupt:
        return


def main() -> None:
    """Run the cases, print the table, store the records."""
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
        be_endpoint(options.be_endpoint)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    end_in_order()
    if options.bundle is None:
        run = bundles.RUN_BUNDLE if bundles.RUN_BUNDLE.exists() else None
        options.bundle = bundles.plain(run, CACHE / "plain")
    of_all = [case for case in options.only if case != "scaled"]
    records = tried(options, CORES, of_all) if of_all else []
    records += tried(options, 1, ["scaled"]) if "scaled" in options.only else []
    print("\n" + table(records))
    stored = {"environment": provenance.environment(), "seconds": options.seconds}
    options.out.write_text(json.dumps(stored | {"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
