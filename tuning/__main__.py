"""Search the best settings of a recipe: `bertha tune reviews.yaml --trials 16`.

bertha tune reviews.yaml data.max_rows=2000 'tune.optimizer.learning_rate=log 1e-5..1e-3'
bertha tune resume runs/tuning-reviews
bertha tune dashboard runs/tuning-reviews
bertha tune report runs/tuning-reviews
"""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cluster import spec
from cluster.command_line import COUNT, Parser, whole_number
from cluster.errors import BerthaError
from trainers.config.command_line import describe_recipes, parse_with_settings
from trainers.storage.directory import SyncedDirectory
from tuning.algorithms.sampler import Sampler
from tuning.algorithms.scheduler import Scheduler
from tuning.store.config import (
    PLAN,
    SearchConfig,
    build_search_config,
    load_search_config,
    resolve_cluster,
)
from tuning.store.lease import open_study_directory

if TYPE_CHECKING:
    from tuning.execution.controller import PreparedSearch


FOLLOW_UPS = ("resume", "dashboard", "report")
RUNS = Path("runs")
MAX_SHOWN = 10
INTERRUPTED = 128 + signal.SIGINT  # as a shell says it


def main(arguments: Sequence[str] | None = None, prog: str = "python -m tuning") -> int:
    """Run the command line and return the exit status. A user's mistake ends in one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = _command_name(prog)
    if len(words) == 1 and words[0] in FOLLOW_UPS:
        print("\n".join([f"usage: {name} {words[0]} RUN", *_search_lines(name)]))
        return 2
    options = parse_arguments(words, prog)
    try:
        return int(options.command(options))
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was begun", file=sys.stderr)
        return INTERRUPTED


def _start_search(options: argparse.Namespace) -> int:
    if options.recipe is None:
        print(describe_recipes(options.called, "csv.yaml data.source=reviews.csv --trials 16"))
        print("\n".join(_search_lines(options.called)))
        return 2
    given = vars(options)
    fields = {
        name: given[name] for name in given.keys() & (SearchConfig.model_fields.keys() - {"recipe"})
    }
    config = build_search_config(options.recipe, options.overrides, **fields)
    from tuning import study

    if options.dry_run:
        from tuning.dry_run import describe_search

        for line in describe_search(study.prepare_search(config, estimate=True), options.probed):
            print(line)
        return 0
    stamp = time.strftime("%Y%m%d-%H%M%S")
    cluster = spec.load_cluster_spec(config.cluster)
    default_run = cluster.run_path(f"tuning-{Path(options.recipe).stem}-{stamp}")
    with open_study_directory(options.run or default_run) as run:
        prepared = study.create_search(config, run)
        print(f"search: {run.address}")
        return _run_search(run, prepared)


def _resume_search(options: argparse.Namespace) -> int:
    from tuning import study

    with open_study_directory(options.run) as run:
        config = load_search_config(run.path, run.address)
        if options.cluster:
            config = config.model_copy(update={"cluster": resolve_cluster(options.cluster)})
        if options.trials:
            config = config.with_trials(options.trials)
        return _run_search(run, study.prepare_search(config))


def _show_dashboard(options: argparse.Namespace) -> int:
    from tuning.results import dashboard

    return dashboard.run_dashboard(options.run, options.port, not options.no_browser)


def _write_report(options: argparse.Namespace) -> int:
    from tuning.results.report import write_report

    with open_study_directory(options.run) as run:
        for name in write_report(run):
            print(f"report: {run.address}/{name}")
    return 0


def _run_search(run: SyncedDirectory, prepared: "PreparedSearch") -> int:
    """Search to the end and show the outcome."""
    from tuning import study
    from tuning.results import report

    if not run.home:
        print(f"look at it: bertha tune dashboard {run.address}", flush=True)
    try:
        result = study.finish_search(run, prepared)
    except KeyboardInterrupt:
        print(
            f"interrupted: {run.address}: what is saved is kept; go on with\n"
            f"  bertha tune resume {shlex.quote(run.address)}",
            file=sys.stderr,
        )
        return INTERRUPTED
    for line in report.summary_lines(result, prepared.cluster):
        print(line)
    print(f"report: {run.address}/{report.HTML}")
    return 0


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Parse a command line; exit as argparse does on a mistake."""
    name = _command_name(prog)
    if arguments and arguments[0] in FOLLOW_UPS:
        return _parse_follow_up(arguments, name)
    parser = Parser(
        prog=name,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=_start_search, called=name)
    parser.add_argument("recipe", nargs="?", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--trials", type=COUNT, default=16, help="of the search (16)")
    parser.add_argument("--run", help="the search: a directory, or s3://...; default: a new one")
    parser.add_argument("--cluster", default="local.yaml", help="a Ray cluster YAML (local.yaml)")
    parser.add_argument("--budget", help="the most it may cost: 2h, 50USD or 3kWh")
    parser.add_argument("--sampler", choices=get_args(Sampler), default="gp")
    parser.add_argument("--scheduler", choices=get_args(Scheduler), default="asha")
    parser.add_argument("--seeds", type=COUNT, default=3, help="of the best trials in all (3)")
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
    parser.add_argument(
        "--register", dest="register_as", metavar="NAME", help="the winner, as NAME@best"
    )
    parser.add_argument("--registry", default="registry", help="directory or s3://: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument(
        "--probed",
        metavar="FILE",
        type=Path,
        help="what `bertha probe --out FILE` measured, for a dry run's time",
    )
    return parse_with_settings(parser, arguments)


def _command_name(prog: str) -> str:
    return prog if prog.startswith("python") else f"{prog} tune"


def _search_lines(name: str) -> Iterator[str]:
    """Yield the searches below ./runs, the newest first, with what can be done with them."""
    yield ""
    yield f"RUN of `{name} {'|'.join(FOLLOW_UPS)} RUN` is the directory of a search. In ./{RUNS}:"
    plans = sorted(RUNS.glob(f"*/{PLAN}"), key=lambda path: -path.stat().st_mtime)
    for search in (path.parent for path in plans[:MAX_SHOWN]):
        ended = (search / "result.json").is_file()
        yield f"  {search!s:<30}{'ended' if ended else f'not ended: {name} resume {search}'}"
    if not plans:
        yield "  none yet"


def _parse_follow_up(arguments: Sequence[str], name: str) -> argparse.Namespace:
    """Parse the commands on a search that exists."""
    parser = Parser(prog=name)
    subparsers = parser.add_subparsers(required=True)
    resumes = subparsers.add_parser(
        "resume",
        description="Continue an interrupted search, or one that has ended, with more trials.",
    )
    resumes.add_argument("run", help="the directory of the search, or s3://...")
    resumes.add_argument("--cluster", help="where it goes on; default: where it began")
    resumes.add_argument(
        "--trials", type=COUNT, metavar="N", help="in all, more than it began with"
    )
    resumes.set_defaults(command=_resume_search)
    looks = subparsers.add_parser("dashboard", description="Show a live page of a search.")
    looks.add_argument("run", help="the directory of the search")
    looks.add_argument(
        "--port", type=whole_number(0, 65535), default=8080, help="to listen at, 0 for any (8080)"
    )
    looks.add_argument("--no-browser", action="store_true", help="open none")
    looks.set_defaults(command=_show_dashboard)
    reports = subparsers.add_parser("report", description="Write the report of a search again.")
    reports.add_argument("run", help="a search that has ended: its directory, or s3://...")
    reports.set_defaults(command=_write_report)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
