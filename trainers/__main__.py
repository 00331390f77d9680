"""Train a recipe: `python -m trainers reviews.yaml batch.global_size=64 --run runs/mine`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster import spec
from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers.config import recipe as recipes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Everything a user can get wrong ends in one line."""
    options = _parse(arguments)
    if options.schema:
        print(recipes.schema())
        return 0
    try:
        return _train(options)
    except BerthaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _train(options: argparse.Namespace) -> int:
    if options.recipe is None:
        raise SettingsError("name a recipe: a file, or a shipped one such as reviews.yaml")
    recipe = recipes.load(options.recipe, options.overrides)
    if options.rehearse:
        return _rehearse(options, recipe)
    cluster = spec.load(options.cluster or "local.yaml")
    if options.dry_run:
        from trainers.planning.dry_run import describe

        for line in describe(recipe, cluster):
            print(line)
        return 0
    from trainers.data import prepare
    from trainers.runtime import fit
    from trainers.tracking import progress, run_directory, summary
    from trainers.training import distillation

    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = (options.run or cluster.run_named(f"{Path(options.recipe).stem}-{stamp}")).rstrip("/")
    run_directory.RunDirectory.at(run, cluster.cache).probe()
    print(f"run: {run}")
    prepared = prepare.prepare(recipe, cluster.cache, progress.encoding())
    for line in prepared.report.lines():
        print(line)
    distillation.taught(recipe, prepared, cluster.cache, progress.asking())
    outcome = fit.fit(recipe, cluster, run, options.resume)
    for line in summary.lines(outcome.result, outcome.seconds, run):
        print(line)
    return 0


def _rehearse(options: argparse.Namespace, recipe: recipes.Recipe) -> int:
    """Play a step of the run on devices that need not exist."""
    from trainers.planning.simulation_report import described, devices_of

    memory = None if options.device_memory is None else _gib(options.device_memory)
    cluster = devices_of(
        spec.load(options.cluster) if options.cluster else None,
        options.devices,
        memory,
        options.devices_per_node,
    )
    for line in described(recipe, cluster, options.vocabulary_size):
        print(line, flush=True)
    return 0


def _gib(size: str) -> float:
    """GiB of `size`, as in 80GiB or 80. Raises SettingsError for anything else."""
    try:
        gib = float(size.removesuffix("GiB"))
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise SettingsError(f"--device-memory {size!r}: give GiB, as in 80GiB")
    return gib


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainers", description=__doc__)
    parser.add_argument("recipe", nargs="?", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--cluster", help="a Ray cluster YAML; default: local.yaml")
    parser.add_argument("--run", help="the run: a directory, or s3://...; default: a new one")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="play a step with fake tensors on devices that need not exist: memory and exchanges",
    )
    rehearsal = parser.add_argument_group("with --rehearse, instead of what --cluster says")
    rehearsal.add_argument("--devices", type=int, metavar="N", help="devices in all")
    rehearsal.add_argument("--device-memory", metavar="GIB", help="of each, as in 80GiB")
    rehearsal.add_argument("--devices-per-node", type=int, metavar="N", help="default: 8")
    rehearsal.add_argument(
        "--vocabulary-size",
        type=int,
        metavar="N",
        help="of a `random` model; default: its tokenizer's if that is here, else BERT's 30522",
    )
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
