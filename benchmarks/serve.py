"""Compare requests a second, latency and CPU of servers of one model on this machine.

The same bundle, texts and client for all; servers are started one at a time, warmed up, measured
and stopped, round after round, so what disturbs the machine disturbs all. Two more rows are not
servers: the ceiling, the throughput of a process a core in batches of the same budget
(`ceiling.py`), for the engine that `bertha build` chooses and for torch fp32.

    python benchmarks/serve.py --install                          # the rivals' environments, once
    python benchmarks/serve.py --rounds 3 --seconds 20 [--rows bertha mosec] [--open-loop]

The closed loop keeps a fixed number of connections busy; --open-loop adds shares of its rate, at
times that do not depend on responses; --half-cpu adds a busy process for half of the
cores. Writes benchmarks/results/serve.json.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import bundles
from contenders import CONTENDERS
from report import format_table
from servers import ServerStartError, exit_on_sigterm
from texts import sample_texts
from turns import Bench, Record, measure_ceiling, measure_server

from trainers.tracking import provenance

RESULTS = Path(__file__).parent / "results"
CACHE = Path("~/.cache/bertha/rivals/bundles").expanduser()
CEILINGS = ("ceiling", "ceiling-fp32")


def run_rounds(bench: Bench, rows: list[str]) -> tuple[list[Record], dict[str, str]]:
    """Measure all rows in rounds; return (records, reasons of missing rows)."""
    records: list[Record] = []
    missing: dict[str, str] = {}
    for number in range(bench.options.rounds):
        turn = number % len(rows)
        for name in rows[turn:] + rows[:turn]:
            if name in missing:
                continue
            try:
                measured = _measure_row(bench, name)
            except ServerStartError as error:
                missing[name] = str(error)
                print(f"{name}: {error}", flush=True)
                continue
            records += [{"row": name, "round": number, **record} for record in measured]
            for record in measured:
                print(_format_record(number, name, record), flush=True)
    return records, missing


def _measure_row(bench: Bench, name: str) -> list[Record]:
    if name in CEILINGS:
        return measure_ceiling(bench, name)
    contender = CONTENDERS[name]
    reason = contender.missing_requirement()
    if reason is not None:
        raise ServerStartError(reason)
    with tempfile.TemporaryDirectory(prefix="bertha-bench-") as directory:
        return measure_server(bench, contender, Path(directory))


def _format_record(number: int, name: str, record: Record) -> str:
    p99 = record.get("milliseconds", {}).get("p99", 0.0)
    half = " (half the CPU)" if record["half_cpu"] else ""
    failed = {k: v for k, v in record.get("statuses", {}).items() if k != "200"}
    failed |= record.get("failures", {})
    return (
        f"round {number + 1}  {name:<18} {record['texts']:<6} {record['load']:<10}"
        f"{record['requests_per_second']:8.1f}/s  p99 {p99:8.1f} ms{half}  {failed or ''}"
    )


def install_rivals(rows: list[str]) -> None:
    """Make the virtual environments of the rivals."""
    for name in rows:
        if name in CONTENDERS and CONTENDERS[name].venv_name:
            print(f"{name} …", CONTENDERS[name].install() or "installed", flush=True)


def prepare_bundles(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return (bundle without engines, bundle with engines built and chosen here)."""
    source = options.bundle
    if source is None and (bundles.RUN_BUNDLE / "bundle.json").exists():
        source = bundles.RUN_BUNDLE
    plain = bundles.copy_without_engines(source, CACHE / "plain")
    chosen = {name for name, each in CONTENDERS.items() if each.uses_chosen_engine}
    if not ({"ceiling"} | chosen) & set(options.rows):
        return plain, plain
    return plain, bundles.copy_with_engines(plain, CACHE / "built", options.engine)


def main() -> None:
    """Measure the rows, print the table and store the records."""
    options = _build_parser().parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    exit_on_sigterm()
    if options.install:
        install_rivals(options.rows)
        return
    texts = {kind: sample_texts(kind) for kind in options.texts}
    bench = Bench(options, *prepare_bundles(options), texts)
    records, missing = run_rounds(bench, options.rows)
    print("\n" + format_table(records, missing))
    engine = bundles.chosen_engine(bench.built)
    stored = {
        "environment": provenance.describe_environment(),
        "options": {k: str(value) for k, value in vars(options).items() if k != "out"},
        "engine": engine,
        "settings": {name: each.settings for name, each in CONTENDERS.items()},
        "missing": missing,
        "records": records,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(stored, indent=1) + "\n")


def _build_parser() -> argparse.ArgumentParser:
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
