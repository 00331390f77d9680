"""Search the best settings of a recipe: `python -m tuning reviews.yaml --trials 16`.

python -m tuning reviews.yaml data.max_rows=2000 'tune.optimizer.learning_rate=log 1e-5..1e-3'
python -m tuning resume runs/tuning-reviews
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cluster import spec
from cluster.errors import BerthaError
from cluster.settings import SettingsError, validated
from trainers import recipe as recipes
from tuning.plan import Plan, load
from tuning.sampler import Sampler
from tuning.scheduler import Scheduler

if TYPE_CHECKING:
    from tuning.study import Setting


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Everything a user can get wrong ends in one line."""
    options = _parse(arguments)
    try:
        return _resume(options) if options.recipe == "resume" else _start(options)
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _start(options: argparse.Namespace) -> int:
    plan = _plan(options)
    from tuning import study

    if options.dry_run:
        from tuning.dry_run import describe

        for line in describe(study.setting(plan, sketched=True)):
            print(line)
        return 0
    stamp = time.strftime("%Y%m%d-%H%M%S")
    storage = Path(spec.load(plan.cluster).metadata.storage)
    run = Path(options.run or storage / f"tuning-{Path(options.recipe).stem}-{stamp}")
    _local(run)
    made = study.create(plan, run)
    print(f"search: {run}")
    return _go(run, made)


def _resume(options: argparse.Namespace) -> int:
    if len(options.overrides) != 1 or options.run:
        raise SettingsError("name the search to go on with: python -m tuning resume RUN")
    from tuning import study

    run = Path(options.overrides[0])
    _local(run)
    return _go(run, study.setting(load(run)))


def _go(run: Path, made: "Setting") -> int:
    """Search to the end and show the outcome."""
    from tuning import outcome, study
    from tuning.summary import lines

    with study.opened(run, made) as search:
        search.go()
        result = outcome.conclude(search, run)
    for line in lines(result, made.cluster):
        print(line)
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    """What was asked for, checked as far as that needs no data."""
    settings, origin = recipes.read(options.recipe, options.overrides)
    ranges = settings.pop(recipes.RANGES, None)
    recipe = recipes.parse(settings, origin).rooted()
    cluster = options.cluster or "local.yaml"
    asked = {
        "recipe": recipe.model_dump(mode="json"),
        "ranges": ranges,
        "cluster": str(Path(cluster).resolve()) if Path(cluster).is_file() else cluster,
        "trials": options.trials,
        "sampler": options.sampler,
        "scheduler": options.scheduler,
        "seeds": options.seeds,
        "budget": options.budget,
        "scaling_rule": options.scaling_rule,
    }
    return validated(Plan, asked, "search")


def _local(run: Path) -> None:
    if "://" in str(run) or str(run).startswith("s3:/"):
        raise SettingsError(
            f"--run {run}: a search is kept in a directory that all nodes see; its journal cannot "
            "be appended to in s3://"
        )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe file, the name of a shipped one, or `resume`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--trials", type=int, default=16, help="of the search (16)")
    parser.add_argument("--run", help="the directory of the search; default: a new one")
    parser.add_argument("--cluster", help="a Ray cluster YAML; default: local.yaml")
    parser.add_argument("--budget", help="the most it may cost: 2h, 50USD or 3kWh")
    parser.add_argument("--sampler", choices=get_args(Sampler), default="tpe")
    parser.add_argument("--scheduler", choices=get_args(Scheduler), default="asha")
    parser.add_argument("--seeds", type=int, default=3, help="of the best trials in all (3)")
    parser.add_argument(
        "--no-scaling-rule",
        dest="scaling_rule",
        action="store_false",
        help="search the learning rate itself, not that at the recipe's batch size",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
