"""Prepares, creates and opens searches. All that a user can get wrong is checked before the start.

RUN/plan.yaml        the configuration
RUN/study.journal    every decision
RUN/trials/0007/     the run directory of a trial, as `bertha train` leaves it
RUN/bundle           the winner        RUN/result.json   the outcome
RUN/report.html      for people        RUN/report.md
RUN/lease/           which process goes on with it

RUN is a directory that all nodes see, or a URL such as s3://...
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster import spec
from cluster.settings import SettingsError
from cluster.spec import ClusterSpec
from trainers.config import recipe as recipes
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.models.pretrained import check_pretrained
from trainers.planning.accelerator import check_accelerator, resolve_accelerator
from trainers.planning.layout import resolve_shape
from trainers.runtime.job_sources import check_job_sources
from trainers.storage.directory import SyncedDirectory
from trainers.tracking import progress
from trainers.tracking.sinks.trackers import check_trackers
from tuning.algorithms import pbt
from tuning.algorithms.eval_schedule import EvalSchedule
from tuning.algorithms.sampler import grid_points
from tuning.execution.capacity import Capacity
from tuning.execution.controller import PreparedSearch, SearchController
from tuning.execution.tuner import Search
from tuning.results import outcome, report
from tuning.results.deployment import check_registration
from tuning.space.scaling_rule import ScalingRule
from tuning.space.space import Space, extract_point, parse_space
from tuning.store.budget import parse_budget
from tuning.store.config import PLAN, SearchConfig
from tuning.store.journal import Journal
from tuning.store.lease import hold_search, open_study_directory
from tuning.store.reader import JournalError


def prepare_search(config: SearchConfig, estimate: bool = False) -> PreparedSearch:
    """Validate a search and work out all that follows from its configuration.

    estimate: estimate the sizes of data that is not encoded yet, instead of encoding it. Raises
    BerthaError.
    """
    choice = resolve_accelerator(spec.load_cluster_spec(config.cluster))
    cluster, recipe = choice.cluster, config.recipe
    if not estimate:
        check_accelerator(cluster)
    if choice.line:
        print(choice.line, flush=True)
    if config.register_as is not None:
        check_registration(config.register_as, config.registry)
    max_seconds = None if config.budget is None else parse_budget(config.budget, cluster)
    if not recipe.data.validation:
        raise SettingsError(
            "data.validation is 0, but a search decides by validation rows; hold some out"
        )
    data = _measure_data(recipe, cluster, estimate)
    shape = resolve_shape(recipe, data.labels, data.num_features, cluster.cache_dir)
    recipe = choose_settings(recipe, data.num_train, shape.hidden_size).recipe
    config = config.model_copy(update={"recipe": recipe})
    schedule = EvalSchedule.for_recipe(recipe, data.num_train, data.num_tokens, data.num_validation)
    settings = recipe.model_dump(mode="json") | {recipes.SEARCH_KEY: config.ranges}
    space = parse_space(settings, recipe, shape.num_parameters, "recipe")
    _check_num_trials(config, space)
    batch_size, optimizer = recipe.global_batch_size, recipe.optimizer.name
    return PreparedSearch(
        config=config,
        cluster=cluster,
        shape=shape,
        space=space,
        scaling_rule=ScalingRule.for_space(space, batch_size, optimizer, config.scaling_rule),
        schedule=schedule,
        capacity=Capacity.for_recipe(recipe, shape, cluster),
        max_seconds=max_seconds,
    )


def create_search(config: SearchConfig, run: SyncedDirectory) -> PreparedSearch:
    """Create the search `run`. Raises BerthaError for any mistake, and then leaves no files."""
    if (run.path / PLAN).exists():
        raise JournalError(
            f"{run.address} holds a search already; `bertha tune resume {run.address}` goes "
            "on with it, --run names another"
        )
    prepared = prepare_search(config)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        prepared.config.save(run.path)
    except OSError as error:
        raise JournalError(
            f"{run.address}: cannot be written: {error}; name another with --run"
        ) from None
    run.publish_files(PLAN)
    return prepared


@contextmanager
def open_search(run: SyncedDirectory, prepared: PreparedSearch) -> Iterator[Search]:
    """Open the search in `run`, held by this process while the block runs.

    Raises LeaseError where another process goes on with it.
    """
    config, space = prepared.config, prepared.space
    with hold_search(run) as lease:
        config.save(run.path)  # it may be resumed on another cluster than before
        run.publish_files(PLAN)
        journal = Journal(
            run.path,
            prepared.scaling_rule.settings_space(space),
            extract_point(config.recipe, space),
            config.sign,
            lease.check_held,
            lease.publish_journal,
        )
        journal.note_facts(
            {
                "sampler": config.sampler,
                "total_tokens": prepared.schedule.total_tokens,
                "slots": prepared.capacity.slots,
            }
        )
        journal.set_metric_name(config.recipe.metric)
        try:
            yield Search(SearchController(prepared, journal), run, lease.check_held)
        finally:
            shutil.rmtree(run.path / "ray", ignore_errors=True)


def finish_search(run: SyncedDirectory, prepared: PreparedSearch) -> dict[str, Any]:
    """Search to the end and write the report; return the contents of result.json."""
    with open_search(run, prepared) as search:
        search.run()
        search.check_lease()
        result = outcome.conclude_search(search, run)
    report.write_report(run)
    return result


def run_new_search(config: SearchConfig, run: str) -> dict[str, Any]:
    """Search in a new directory or s3:// URL; return the contents of result.json."""
    with open_study_directory(run) as directory:
        return finish_search(directory, create_search(config, directory))


@dataclass(frozen=True)
class DataSizes:
    """The sizes of the data. num_features: of a linear model."""

    labels: tuple[str, ...]
    num_features: int
    num_train: int
    num_tokens: int
    num_validation: int


def _measure_data(recipe: Recipe, cluster: ClusterSpec, estimate: bool) -> DataSizes:
    check_job_sources(recipe, cluster)
    check_trackers(recipe.tracking)
    check_pretrained(recipe, cluster.cache_dir)
    if estimate:
        sketch = prepare.estimate_dataset(recipe, cluster.cache_dir)
        lengths, labels, num_train = sketch.lengths, sketch.labels, sketch.num_train
        num_tokens = int(lengths.mean() * num_train)
        num_validation = (sketch.report.sequences or sketch.report.rows)["validation"]
    else:
        data = prepare.prepare_dataset(
            recipe, cluster.cache_dir, progress.count_printer("encoding texts")
        )
        lengths, labels, num_train = data.train.samples.lengths, data.labels, len(data.train)
        num_tokens, num_validation = int(lengths.sum()), len(data.validation)
    return DataSizes(labels, int(lengths[0]), num_train, num_tokens, num_validation)


def _check_num_trials(config: SearchConfig, space: Space) -> None:
    """Raise SettingsError if the sampler cannot search this space with so many trials."""
    if config.sampler == "pbt":
        pbt.check_mutable(space)
        if config.seeds != 1 or config.trials < 3:
            raise SettingsError(
                f"--sampler pbt with --trials {config.trials} --seeds {config.seeds}: give "
                "--trials 3 or more, a population of two beside the recipe's own, and --seeds 1: "
                "a schedule that was found while training is not repeated with another seed"
            )
    if config.sampler != "grid":
        return
    own = extract_point(config.recipe, space)
    num_points = 1 + sum(point != own for point in grid_points(space))
    if num_points > config.trials:
        raise SettingsError(
            f"--trials {config.trials}: the grid has {num_points} points, the recipe's own among "
            f"them; raise --trials to {num_points}, shorten the lists, or choose another --sampler"
        )
