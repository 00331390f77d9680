"""Requests a second, latency and CPU of servers of one model, side by side on this machine.

The same bundle, texts and client for all; servers are started one at a time, warmed up, measured
and ended, round after round, so what disturbs the machine disturbs all. Two more rows are no
servers: the ceiling, what as many processes as there are cores compute in batches of the same
budget (`ceiling.py`), for the engine that `python -m serving build` chooses and for torch fp32.

    python benchmarks/serve.py --install                          # the rivals' environments, once
    python benchmarks/serve.py --rounds 3 --seconds 20 [--rows bertha mosec] [--open-loop]

The closed loop asks with so many connections; --open-loop adds shares of what the closed loop
reached, at moments that do not depend on answers; --half-cpu adds a busy process for half of the
cores. Writes benchmarks/results/serve.json.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import bundles
from contenders import CONTENDERS
from report import table
from servers import DidNotStart, end_in_order
from texts import texts_of
from turns import Bench, Record, of_ceiling, of_server

from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"
CACHE = Path("~/.cache/bertha/rivals/bundles").expanduser()
CEILINGS = ("ceiling", "ceiling-fp32")


def raced(bench: Bench, rows: list[str]) -> tuple[list[Record], dict[str, str]]:
    """The records of all rounds, and why rows are missing."""
    records: list[Record] = []
    missing: dict[str, str] = {}
    for number in range(bench.options.rounds):
        turn = number % len(rows)
        for name in rows[turn:] + rows[:turn]:
            if name in missing:
                continue
            try:
                found = _turn(bench, name)
            except DidNotStart as error:
                missing[name] = str(error)
                print(f"{name}: {error}", flush=True)
                continue
            records += [{"row": name, "round": number, **record} for record in found]
            for record in found:
                print(_line(number, name, record), flush=True)
    return records, missing


def _turn(bench: Bench, name: str) -> list[Record]:
    if name in CEILINGS:
        return of_ceiling(bench, name)
    contender = CONTENDERS[name]
    lacking = contender.lacking()
    if lacking is not None:
        raise DidNotStart(lacking)
    with tempfile.TemporaryDirectory(prefix="bertha-bench-") as directory:
        return of_server(bench, contender, Path(directory))


def _line(number: int, name: str, record: Record) -> str:
    p99 = record.get("milliseconds", {}).get("p99", 0.0)
    half = " (half the CPU)" if record["half_cpu"] else ""
    failed = {k: v for k, v in record.get("statuses", {}).items() if k != "200"}
    failed |= record.get("failures", {})
    return (
        f"round {number + 1}  {name:<18} {record['texts']:<6} {record['load']:<10}"
        f"{record['requests_per_second']:8.1f}/s  p99 {p99:8.1f} ms{half}  {failed or ''}"
    )


def install(rows: list[str]) -> None:
    """Make the rivals' environments."""
    for name in rows:
        if name in CONTENDERS and CONTENDERS[name].home:
            print(f"{name} …", CONTENDERS[name].install() or "installed", flush=True)


def bundle_for(options: argparse.Namespace) -> tuple[Path, Path]:
    """The bundle without engines, and the one with those that were chosen on this machine."""
    source = options.bundle
    if source is None and (bundles.RUN_BUNDLE / "bundle.json").exists():
        source = bundles.RUN_BUNDLE
    plain = bundles.plain(source, CACHE / "plain")
    needed = {"bertha", "ceiling"} & set(options.rows)
    return plain, bundles.built(plain, CACHE / "built", options.engine) if needed else plain


def main() -> None:
    """Measure, print the table, store the records."""
    options = _parser().parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    end_in_order()
    if options.install:
        install(options.rows)
        return
    texts = {kind: texts_of(kind) for kind in options.texts}
    bench = Bench(options, *bundle_for(options), texts)
    records, missing = raced(bench, options.rows)
    print("\n" + table(records, missing))
    engine = bundles.engine_of(bench.built)
    stored = {
        "environment": provenance.environment(),
        "options": {k: str(value) for k, value in vars(options).items() if k != "out"},
        "engine": engine,
        "settings": {name: each.settings for name, each in CONTENDERS.items()},
        "missing": missing,
        "records": records,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(stored, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    rows = [*CONTENDERS, *CEILINGS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds, of each kind of text")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--texts", nargs="+", choices=("short", "long"), default=["short", "long"])
    parser.add_argument("--open-loop", action="store_true", help="add a ramp of fixed rates")
    parser.add_argument("--half-cpu", action="store_true", help="add a turn beside a busy process")
    parser.add_argument("--bundle", type=Path, help="default: the demo's, or a random head")
    parser.add_argument("--engine", action="append", help="build only this; default: all")
    parser.add_argument("--install", action="store_true", help="make the rivals' environments")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    return parser


if __name__ == "__main__":
    main()
