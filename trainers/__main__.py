"""Train a recipe: `bertha train reviews.yaml batch.global_size=64 --run runs/mine`.

Other commands: `recipes` lists the shipped recipes, `probe` times real steps on this machine,
`compare` compares runs.
"""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster import spec
from cluster.command_line import COUNT, POSITIVE, Parser
from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers.config import command_line
from trainers.config import recipe as recipes
from trainers.tracking.wait import Wait

INTERRUPTED = 128 + signal.SIGINT  # as a shell says it
IMPORTS = "loading torch and Transformers"
MAX_SHOWN = 10  # runs
EXAMPLE = "csv.yaml data.source=reviews.csv data.text=body data.label=stars --run runs/mine"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m trainers") -> int:
    """Run the command line and return the exit status; a user's mistake is one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["compare"]:
        print("\n".join(_run_lines(prog)))
        return 2
    options = parse_arguments(words, prog)
    try:
        return int(options.command(options))
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _list_recipes(options: argparse.Namespace) -> int:
    for line in command_line.recipe_lines():
        print(line)
    return 0


def _measure(options: argparse.Namespace) -> int:
    from trainers.planning.probe import measure_to_file

    return measure_to_file(options)


def _run_lines(prog: str) -> Iterator[str]:
    """Yield how runs are compared, and those below ./runs that have ended, the newest first."""
    yield f"usage: {prog} compare RUN RUN ..."
    yield ""
    yield "A RUN is the directory that training leaves. Ended, in ./runs:"
    results = sorted(Path("runs").glob("*/result.json"), key=lambda path: -path.stat().st_mtime)
    yield from [f"  {path.parent}" for path in results[:MAX_SHOWN]] or ["  none yet"]


def _compare(options: argparse.Namespace) -> int:
    from trainers.evaluation.compare import compare_runs

    cluster = spec.load_cluster_spec(options.cluster or "local.yaml")
    for line in compare_runs(options.runs, cluster.cache_dir, options.metric):
        print(line)
    return 0


def _train(options: argparse.Namespace) -> int:
    if options.schema:
        print(recipes.recipe_schema())
        return 0
    if options.recipe is None:
        print(command_line.describe_recipes(options.called, EXAMPLE))
        return 2
    recipe = recipes.load_recipe(options.recipe, options.overrides)
    if options.simulate:
        return _simulate(options, recipe)
    cluster = spec.load_cluster_spec(options.cluster or "local.yaml")
    if options.dry_run:
        from trainers.runtime.early_checks import check_run, check_settings, open_run

        if options.run and cluster.is_this_machine and "://" not in options.run:
            check_run(recipe, cluster, open_run(options.run, cluster), options.resume)
        check_settings(recipe, cluster)
        with Wait(IMPORTS):
            from trainers.planning.dry_run import describe_run

        for line in describe_run(recipe, cluster):
            print(line)
        return 0
    if options.resume and not options.run:
        raise SettingsError("--resume goes on with a run; name its directory with --run")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = (options.run or cluster.run_path(f"{Path(options.recipe).stem}-{stamp}")).rstrip("/")
    print(f"run: {run}", flush=True)
    try:
        return _train_in(run, options, recipe, cluster)
    except KeyboardInterrupt:
        has_begun = run.startswith("s3://") or (Path(run) / "recipe.yaml").is_file()
        what = "what is saved is kept; go on with" if has_begun else "nothing is saved; begin with"
        command = _command_again(options, run, resume=has_begun)
        print(f"interrupted: {run}: {what}\n  {command}", file=sys.stderr)
        return INTERRUPTED


def _command_again(options: argparse.Namespace, run: str, resume: bool) -> str:
    """Return the command line that begins `run` again, or goes on with it."""
    words = [options.recipe, *options.overrides]
    words += ["--cluster", options.cluster] if options.cluster else []
    words += ["--run", run, *(["--resume"] if resume else [])]
    return f"{options.called} {shlex.join(words)}"


def _train_in(
    run: str, options: argparse.Namespace, recipe: recipes.Recipe, cluster: spec.ClusterSpec
) -> int:
    """Train `recipe` in the directory or URL `run`."""
    from trainers.runtime.early_checks import check_run, open_run

    directory = open_run(run, cluster)
    check_run(recipe, cluster, directory, options.resume)
    with Wait(IMPORTS):
        from trainers.data import prepare
        from trainers.models.pretrained import check_pretrained
        from trainers.runtime import fit
        from trainers.tracking import progress
        from trainers.training import distillation

    cluster = fit.choose_accelerator(cluster)
    check_pretrained(recipe, cluster.cache_dir)
    prepared = prepare.prepare_dataset(
        recipe, cluster.cache_dir, progress.count_printer("encoding texts")
    )
    for line in prepared.report.to_lines():
        print(line)
    prepared = distillation.attach_teacher_logits(
        recipe, prepared, cluster.cache_dir, progress.count_printer("asking the teacher")
    )
    outcome = fit.fit(recipe, cluster, directory, options.resume, prepared=prepared)
    for line in progress.summarize_run(outcome.result, outcome.seconds, run):
        print(line)
    return 0


def _simulate(options: argparse.Namespace, recipe: recipes.Recipe) -> int:
    """Simulate a step of the run on devices that need not exist."""
    from trainers.planning.simulation_report import simulated_cluster, simulation_lines

    memory = None if options.device_memory is None else _parse_gib(options.device_memory)
    cluster = simulated_cluster(
        spec.load_cluster_spec(options.cluster) if options.cluster else None,
        options.devices,
        memory,
        options.devices_per_node,
    )
    for line in simulation_lines(recipe, cluster, options.vocabulary_size):
        print(line, flush=True)
    return 0


def _parse_gib(size: str) -> float:
    """Parse `size`, as in 80GiB or 80. Raises SettingsError for anything else."""
    try:
        gib = float(size.removesuffix("GiB"))
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise SettingsError(f"--device-memory {size!r}: give GiB, as in 80GiB")
    return gib


def parse_arguments(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Parse a command line; exit as argparse does on a mistake."""
    if arguments and arguments[0] in ("recipes", "probe", "compare"):
        return _parse_side_command(arguments, prog)
    name = prog if prog.startswith("python") else f"{prog} train"
    parser = Parser(prog=name, description=__doc__, allow_abbrev=False)
    parser.set_defaults(command=_train, called=name)
    parser.add_argument("recipe", nargs="?", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--cluster", help="a Ray cluster YAML; default: local.yaml")
    parser.add_argument("--run", help="the run: a directory, or s3://...; default: a new one")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument(
        "--simulate",
        "--rehearse",
        action="store_true",
        help="simulate a step with fake tensors, without devices: memory and communication",
    )
    simulation = parser.add_argument_group("with --simulate, instead of what --cluster says")
    simulation.add_argument("--devices", type=COUNT, metavar="N", help="devices in all")
    simulation.add_argument("--device-memory", metavar="GIB", help="of each, as in 80GiB")
    simulation.add_argument("--devices-per-node", type=COUNT, metavar="N", help="default: 8")
    simulation.add_argument(
        "--vocabulary-size",
        type=COUNT,
        metavar="N",
        help="of a `random` model; default: its tokenizer's if that is here, else BERT's 30522",
    )
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    return command_line.parse_with_settings(parser, arguments)


def _parse_side_command(arguments: Sequence[str], prog: str) -> argparse.Namespace:
    """Parse the commands that train nothing."""
    parser = Parser(prog=prog)
    subparsers = parser.add_subparsers(required=True)
    lists = subparsers.add_parser("recipes", description="List the shipped recipes.")
    lists.set_defaults(command=_list_recipes)
    probes = subparsers.add_parser("probe", description="Time real training steps here, for plans.")
    probes.add_argument("--device", help="cpu, cuda, neuron or tpu; default: what is here")
    probes.add_argument("--workers", type=COUNT, nargs="+", metavar="N", help="default: 1 and more")
    probes.add_argument("--seconds", type=POSITIVE, default=60.0, help="in all, for steps")
    probes.add_argument("--out", type=Path, required=True, metavar="FILE")
    probes.set_defaults(command=_measure)
    compares = subparsers.add_parser(
        "compare",
        description="Compare runs on the test rows that they share: figures, whether a difference "
        "is more than chance, and the settings that differ.",
    )
    compares.add_argument("runs", nargs="+", metavar="RUN", help="a directory, or s3://...")
    compares.add_argument("--metric", help="default: that of the first run")
    compares.add_argument("--cluster", help="for its cache; default: local.yaml")
    compares.set_defaults(command=_compare)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
