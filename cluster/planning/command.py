"""`python -m cluster plan`: which hardware a run should go on, before paying.

    python -m cluster plan imdb.yaml --deadline 2h --budget 50USD
    python -m cluster plan imdb.yaml --pick 1 --write my-cluster.yaml     # a file for `up`

Reads options and prints; what it prints is made by planning/plan.py and planning/table.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.hardware import catalog
from cluster.launch import prices
from cluster.planning import calibrate, demand, report, write_cluster_file
from cluster.planning.plan import Wishes, plan
from cluster.planning.probe import Probe
from cluster.planning.serving_cost import service
from cluster.settings import SettingsError

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
WATTS = {"W": 1, "kW": 1e3, "MW": 1e6}
DOLLARS = {"USD": 1, "$": 1, "": 1}
TIMES = {"ms": 1e-3, "s": 1}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command `plan`."""
    plan = commands.add_parser("plan", help="which hardware, which layout, $ and kWh")
    plan.add_argument("recipe", help="a recipe file, or the name of a shipped one")
    plan.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    plan.add_argument("--deadline", metavar="2h", help="seconds, minutes (min), h or d")
    plan.add_argument("--budget", metavar="50USD", help="dollars, on demand")
    plan.add_argument("--power-limit", metavar="10kW", help="of all machines together")
    plan.add_argument("--region", help="only machines offered there, and owned ones")
    plan.add_argument("--owned", metavar="FILE", help="your machines, prices and figures")
    plan.add_argument(
        "--objective", choices=("time", "money", "energy"), default="money", help="what is least"
    )
    plan.add_argument("--pick", type=int, default=1, metavar="N", help="take row N, not the first")
    plan.add_argument("--write", metavar="FILE", help="make a cluster file of that row, for `up`")
    plan.add_argument("--live-prices", action="store_true", help="ask AWS for the prices of now")
    data = plan.add_argument_group("the data, where the recipe's is not known")
    data.add_argument("--rows", type=int, help="training rows")
    data.add_argument("--tokens", type=float, help="mean tokens of a row")
    data.add_argument("--run", dest="record", metavar="DIR", help="a run whose record tells both")
    plan.add_argument("--serve", type=float, metavar="TEXTS/S", help="also quote serving so many")
    plan.add_argument("--p95", default="50ms", help="within which 95%% are answered; default 50ms")
    plan.add_argument("--probe", action="store_true", help="time real steps here, for a minute")
    plan.add_argument(
        "--probed", metavar="FILE", help="what `python -m trainers.planning.probe` measured"
    )
    plan.add_argument("--plots", metavar="DIR", help="draw cost, step and scaling into DIR")
    plan.add_argument("--json", action="store_true", help="print everything for programs")
    plan.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a plan. Raises BerthaError for what cannot be read or met."""
    for line in _lines(options):
        print(line)
    return 0


def _lines(options: argparse.Namespace) -> list[str]:
    """The lines of a plan."""
    asked = demand.read(
        options.recipe, options.overrides, options.rows, options.tokens,
        Path(options.record) if options.record else None,
    )  # fmt: skip
    hardware = catalog.load(Path(options.owned) if options.owned else None)
    if options.live_prices:
        hardware = prices.live(hardware, options.region)
    wishes = _wishes(options, hardware)
    known = _probe(options)
    speeds = calibrate.speeds(asked, hardware, known) if known else None
    found = plan(asked, hardware, wishes, speeds)
    pick = _picked(options.pick, len(found.best))
    if options.plots:
        from cluster.planning import figures  # matplotlib, only when asked for

        for path in figures.draw(asked, found, Path(options.plots)):
            print(f"wrote {path}", file=sys.stderr)
    if options.write:
        write_cluster_file.write(found.best[pick - 1], options.recipe, Path(options.write))
        print(f"wrote {options.write}; `python -m cluster check {options.write}`", file=sys.stderr)
    if options.json:
        return [json.dumps(report.as_json(asked, found, pick), indent=2)]
    lines = list(report.lines(asked, found, wishes, pick))
    if known is not None:
        lines += calibrate.lines(asked, known)
    if options.serve:
        target = _amount(options.p95, TIMES, "--p95", "50ms")
        served = [
            service(asked.shape, asked.mean_tokens, machine, target, options.serve)
            for machine in hardware.machines
            if not machine.accelerator.missing and options.region in (None, machine.region)
        ]
        able = [each for each in served if each is not None]
        able.sort(key=lambda each: each.dollars_per_million or float("inf"))
        lines += report.service_lines(able, options.serve, target)
    return lines


def _probe(options: argparse.Namespace) -> Probe | None:
    if options.probed:
        return calibrate.probed(Path(options.probed))
    return calibrate.probed() if options.probe else None


def _wishes(options: argparse.Namespace, hardware: catalog.Catalogue) -> Wishes:
    """Limits as values. Raises SettingsError or CatalogueError for what cannot be read."""
    if options.region is not None:
        hardware.check_region(options.region)
    return Wishes(
        objective=options.objective,
        deadline=_limit(options.deadline, SECONDS, "--deadline", "2h"),
        budget=_limit(options.budget, DOLLARS, "--budget", "50USD"),
        power=_limit(options.power_limit, WATTS, "--power-limit", "10kW"),
        region=options.region,
    )


def _limit(text: str | None, units: Mapping[str, float], option: str, as_in: str) -> float | None:
    return None if text is None else _amount(text, units, option, as_in)


def _amount(text: str, units: Mapping[str, float], option: str, as_in: str) -> float:
    """A number with a unit, as in 2h. Raises SettingsError for anything else."""
    found = re.fullmatch(r"\s*\$?\s*([\d.]+)\s*([A-Za-z$]*)\s*", text)
    try:
        value = float(found[1]) * units[found[2]] if found else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if value <= 0:
        known = ", ".join(unit for unit in units if unit)
        raise SettingsError(f"{option} {text!r}: a number and one of {known}, as in {as_in}")
    return value


def _picked(pick: int, offers: int) -> int:
    if not 1 <= pick <= offers:
        raise SettingsError(f"--pick {pick}: there are {offers} rows, counted from 1")
    return pick
