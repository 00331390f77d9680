"""Search the best settings of a recipe: `python -m tuning reviews.yaml --trials 16`.

python -m tuning reviews.yaml data.max_rows=2000 'tune.optimizer.learning_rate=log 1e-5..1e-3'
python -m tuning resume runs/tuning-reviews
python -m tuning dashboard runs/tuning-reviews
python -m tuning report runs/tuning-reviews
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cluster import spec
from cluster.errors import BerthaError
from cluster.settings import validated
from trainers.config import recipe as recipes
from trainers.storage.directory import Directory
from tuning.algorithms.sampler import Sampler
from tuning.algorithms.scheduler import Scheduler
from tuning.store.config import PLAN, Plan, load
from tuning.store.lease import at_hand

if TYPE_CHECKING:
    from tuning.study import Setting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Everything a user can get wrong ends in one line."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = {"resume": _resume, "dashboard": _dashboard, "report": _report}.get(
        "".join(words[:1])
    )
    try:
        return _start(_parse(words)) if command is None else command(words[1:])
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _start(options: argparse.Namespace) -> int:
    plan = _plan(options)
    from tuning import study

    if options.dry_run:
        from tuning.dry_run import describe

        for line in describe(study.setting(plan, sketched=True), options.probed):
            print(line)
        return 0
    stamp = time.strftime("%Y%m%d-%H%M%S")
    named = spec.load(plan.cluster).run_named(f"tuning-{Path(options.recipe).stem}-{stamp}")
    with at_hand(options.run or named) as run:
        made = study.create(plan, run)
        print(f"search: {run.address}")
        return _go(run, made)


def _resume(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tuning resume", description="go on with it")
    parser.add_argument("run", help="the directory of the search, or s3://...")
    parser.add_argument("--cluster", help="where it goes on; default: where it began")
    options = parser.parse_args(words)
    from tuning import study

    with at_hand(options.run) as run:
        plan = load(run.path, run.address)
        if options.cluster:
            plan = plan.model_copy(update={"cluster": _cluster(options.cluster)})
        made = study.setting(plan)
        plan.save(run.path)
        run.publish(PLAN)
        return _go(run, made)


def _dashboard(words: list[str]) -> int:
    from tuning.results import dashboard

    return dashboard.main(words)


def _report(words: list[str]) -> int:
    from tuning.results import report

    return report.main(words)


def _go(run: Directory, made: "Setting") -> int:
    """Search to the end and show the outcome."""
    from tuning import study
    from tuning.results import outcome, report
    from tuning.results.summary import lines

    with study.opened(run, made) as search:
        if not run.home:
            print(f"look at it: python -m tuning dashboard {run.address}", flush=True)
        search.go()
        result = outcome.conclude(search, run)
    for line in lines(result, made.cluster):
        print(line)
    print(f"report: {run.address}/{report.write(run)[0]}")
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    """What was asked for, checked as far as that needs no data."""
    settings, origin = recipes.read(options.recipe, options.overrides)
    ranges = settings.pop(recipes.RANGES, None)
    recipe = recipes.parse(settings, origin).rooted()
    registry = options.registry
    asked = {
        "recipe": recipe.model_dump(mode="json"),
        "ranges": ranges,
        "cluster": _cluster(options.cluster or "local.yaml"),
        "trials": options.trials,
        "sampler": options.sampler,
        "scheduler": options.scheduler,
        "seeds": options.seeds,
        "budget": options.budget,
        "scaling_rule": options.scaling_rule,
        "deployment": options.deployment,
        "register_as": options.register,
        "registry": registry if "://" in registry else str(Path(registry).resolve()),
    }
    return validated(Plan, asked, "search")


def _cluster(name: str) -> str:
    """A cluster file as a plan names it: by its whole path, or as one that is shipped."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--trials", type=int, default=16, help="of the search (16)")
    parser.add_argument("--run", help="the search: a directory, or s3://...; default: a new one")
    parser.add_argument("--cluster", help="a Ray cluster YAML; default: local.yaml")
    parser.add_argument("--budget", help="the most it may cost: 2h, 50USD or 3kWh")
    parser.add_argument("--sampler", choices=get_args(Sampler), default="gp")
    parser.add_argument("--scheduler", choices=get_args(Scheduler), default="asha")
    parser.add_argument("--seeds", type=int, default=3, help="of the best trials in all (3)")
    parser.add_argument(
        "--no-scaling-rule",
        dest="scaling_rule",
        action="store_false",
        help="search the learning rate itself, not that at the recipe's batch size",
    )
    parser.add_argument(
        "--deployment",
        action="store_true",
        help="measure every engine of the best of each model: metric, p95 latency, price",
    )
    parser.add_argument("--register", metavar="NAME", help="the winner, as NAME@best")
    parser.add_argument("--registry", default="registry", help="directory or s3://: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument(
        "--probed",
        metavar="FILE",
        type=Path,
        help="what `python -m trainers.planning.probe --out FILE` measured, for a dry run's time",
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
