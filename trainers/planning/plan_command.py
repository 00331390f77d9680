"""`bertha plan`: price a recipe on every machine of the catalog before renting any.

    bertha plan imdb.yaml --deadline 2h --budget 50USD
    bertha plan imdb.yaml --pick 1 --write my-cluster.yaml     # a file for `up`

Imports torch only for --probe, and matplotlib only for --plots.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.command_line import COUNT, POSITIVE, Parser
from cluster.errors import BerthaError
from cluster.hardware import catalog
from cluster.hardware.catalog import Catalog
from cluster.launch import prices
from cluster.planning import probe, report, write_cluster_file
from cluster.planning.plan import Constraints, plan_hardware
from cluster.planning.probe import Probe
from cluster.planning.serving_cost import SERVED, price_serving
from cluster.planning.this_machine import describe_this_machine
from cluster.planning.workload import Workload
from cluster.settings import SettingsError
from trainers.config.command_line import describe_recipes, parse_with_settings
from trainers.planning.workload import load_workload

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
WATTS = {"W": 1, "kW": 1e3, "MW": 1e6}
DOLLARS = {"USD": 1, "$": 1, "": 1}
LATENCIES = {"ms": 1e-3, "s": 1}
PROBE_SECONDS = 60.0


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster plan") -> int:
    """Run the command on `arguments`; return the exit status, 2 after a user's mistake."""
    options = parse_arguments(arguments, prog)
    if options.recipe is None:
        print(describe_recipes(options.called, "imdb.yaml --deadline 2h"))
        return 2
    try:
        lines = _run_plan(options)
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def parse_arguments(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Parse the command's arguments; exit as argparse does on a mistake."""
    parser = Parser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.set_defaults(called=prog)
    parser.add_argument("recipe", nargs="?", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--deadline", metavar="2h", help="seconds, minutes (min), h or d")
    parser.add_argument("--budget", metavar="50USD", help="dollars, on demand")
    parser.add_argument("--power-limit", metavar="10kW", help="of all machines together")
    parser.add_argument("--region", help="only machines offered there, and owned ones")
    parser.add_argument("--owned", metavar="FILE", help="your machines, prices and figures")
    parser.add_argument(
        "--objective", choices=("time", "money", "energy"), default="money", help="what to minimize"
    )
    parser.add_argument(
        "--pick", type=COUNT, default=1, metavar="N", help="choose row N, not row 1"
    )
    parser.add_argument(
        "--write", metavar="FILE", help="write a cluster file of that row, for `up`"
    )
    parser.add_argument("--live-prices", action="store_true", help="ask AWS for current prices")
    data = parser.add_argument_group("the data, where the recipe's size is not known")
    data.add_argument("--rows", type=COUNT, help="training rows")
    data.add_argument("--tokens", type=POSITIVE, help="mean tokens of a row")
    data.add_argument("--run", metavar="DIR", help="an earlier run, whose record has both")
    parser.add_argument(
        "--serve", type=POSITIVE, metavar="TEXTS/S", help="also price serving at this rate"
    )
    parser.add_argument(
        "--p95", default="50ms", help="latency that 95%% of texts stay below; default 50ms"
    )
    parser.add_argument("--probe", action="store_true", help="time real steps here, for a minute")
    parser.add_argument("--probed", metavar="FILE", help="a file that `bertha probe` wrote")
    parser.add_argument("--plots", metavar="DIR", help="draw cost, step and scaling into DIR")
    parser.add_argument("--json", action="store_true", help="print everything for programs")
    return parse_with_settings(parser, sys.argv[1:] if arguments is None else arguments)


def _run_plan(options: argparse.Namespace) -> list[str]:
    """Return the lines to print; write what --plots and --write ask for."""
    run = Path(options.run) if options.run else None
    workload = load_workload(options.recipe, options.overrides, options.rows, options.tokens, run)
    hardware = catalog.load_catalog(Path(options.owned) if options.owned else None)
    if options.live_prices:
        hardware = prices.with_live_prices(hardware, options.region)
    constraints = _parse_constraints(options, hardware)
    measured = _load_or_run_probe(options)
    speeds = probe.relative_speeds(workload, hardware, measured) if measured else None
    plan = plan_hardware(workload, hardware, constraints, speeds)
    pick, rows = options.pick, len(plan.best)
    if not 1 <= pick <= rows:
        raise SettingsError(f"--pick {pick}: there are {rows} rows, counted from 1")
    if options.plots:
        from cluster.planning import figures  # matplotlib, only when asked for

        for path in figures.draw_figures(workload, plan, Path(options.plots)):
            print(f"wrote {path}", file=sys.stderr)
    if options.write:
        write_cluster_file.write_cluster_file(
            plan.best[pick - 1], options.recipe, Path(options.write)
        )
        print(f"wrote {options.write}; `bertha check {options.write}`", file=sys.stderr)
    if options.json:
        return [json.dumps(report.plan_as_json(workload, plan, pick), indent=2)]
    command = shlex.join(["bertha", "train", options.recipe, *options.overrides])
    here = describe_this_machine(workload, command)
    lines = [] if here is None else [here]
    lines += report.format_plan(workload, plan, constraints, pick)
    if measured is not None:
        lines += report.format_probe(workload, measured)
    if options.serve:
        lines += _price_serving(options, workload, hardware)
    return lines


def _price_serving(options: argparse.Namespace, workload: Workload, hardware: Catalog) -> list[str]:
    """Return the price of serving the model on each machine, the cheapest first."""
    target = _parse_amount(options.p95, LATENCIES, "--p95", "50ms")
    machines = [
        machine
        for machine in hardware.machines
        if not machine.accelerator.missing and options.region in (None, machine.region)
    ]
    costs = [
        price_serving(workload.shape, workload.mean_tokens, machine, target, options.serve)
        for machine in machines
    ]
    accelerators = (machine.accelerator for machine in machines)
    unserved = sorted({each.name for each in accelerators if each.kind not in SERVED})
    met = [cost for cost in costs if cost is not None]
    met.sort(key=lambda cost: cost.dollars_per_million or float("inf"))
    return list(report.format_serving(met, options.serve, target, unserved))


def _load_or_run_probe(options: argparse.Namespace) -> Probe | None:
    """Return the probe in a file, or a new one of this machine. Raises ProbeError."""
    if options.probed:
        return probe.read_probe(Path(options.probed))
    if not options.probe:
        return None
    from trainers.planning.probe import run_probe  # torch, only when asked for

    try:
        return run_probe(PROBE_SECONDS)
    except RuntimeError as error:  # also of a worker process that died
        raise probe.ProbeError(f"--probe: {error}; try bertha probe --out FILE") from error


def _parse_constraints(options: argparse.Namespace, hardware: Catalog) -> Constraints:
    """Return the limits as values. Raises SettingsError or CatalogError."""
    if options.region is not None:
        hardware.check_region(options.region)
    return Constraints(
        objective=options.objective,
        deadline=_parse_limit(options.deadline, SECONDS, "--deadline", "2h"),
        budget=_parse_limit(options.budget, DOLLARS, "--budget", "50USD"),
        power=_parse_limit(options.power_limit, WATTS, "--power-limit", "10kW"),
        region=options.region,
    )


def _parse_limit(
    text: str | None, units: Mapping[str, float], option: str, example: str
) -> float | None:
    return None if text is None else _parse_amount(text, units, option, example)


def _parse_amount(text: str, units: Mapping[str, float], option: str, example: str) -> float:
    """Parse a number with a unit, as in 2h. Raises SettingsError for anything else."""
    parsed = re.fullmatch(r"\s*\$?\s*([\d.]+)\s*([A-Za-z$]*)\s*", text)
    try:
        value = float(parsed[1]) * units[parsed[2]] if parsed else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if value <= 0:
        known = ", ".join(unit for unit in units if unit)
        raise SettingsError(f"{option} {text!r}: a number and one of {known}, as in {example}")
    return value


if __name__ == "__main__":
    sys.exit(main())
