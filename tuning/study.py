"""A search on disk: made from a recipe, or found again. Everything is checked before it starts.

RUN/plan.yaml        what was asked for
RUN/study.journal    every decision
RUN/trials/0007/     the run directory of a trial, as `python -m trainers` leaves it
RUN/bundle           the winner        RUN/result.json   the outcome
RUN/report.html      for people        RUN/report.md

RUN is a directory that all nodes see, or a URL as s3://...
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cluster import spec
from cluster.costmodel.model_shape import Shape
from cluster.settings import SettingsError
from cluster.spec import ClusterSpec
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe, lower_is_better
from trainers.data import prepare
from trainers.planning.layout import sizes
from trainers.storage.directory import Directory
from trainers.tracking import progress
from tuning.algorithms import pbt
from tuning.algorithms.eval_schedule import Pace
from tuning.algorithms.sampler import grid
from tuning.execution.capacity import Capacity
from tuning.execution.controller import Director, Terms
from tuning.execution.tuner import Search
from tuning.results import registration
from tuning.space import space as spaces
from tuning.space.scaling_rule import Prior
from tuning.space.space import Space
from tuning.store import config as plans
from tuning.store.budget import Budget
from tuning.store.config import Plan
from tuning.store.journal import Journal
from tuning.store.lease import Holder
from tuning.store.reader import JournalError


@dataclass(frozen=True)
class Setting:
    """What follows from a plan: the cluster, the terms, how trials share the devices, and the sizes
    of the recipe's own model.
    """

    cluster: ClusterSpec
    terms: Terms
    capacity: Capacity
    budget: Budget | None
    shape: Shape


def setting(plan: Plan, sketched: bool = False) -> Setting:
    """Everything that can be known, and be wrong, before a search starts.

    sketched: data that is not encoded yet is looked at and not encoded. Raises BerthaError.
    """
    cluster, recipe = spec.load(plan.cluster), plan.recipe
    if plan.register_as is not None:
        registration.check(plan.register_as, plan.registry)
    budget = None if plan.budget is None else Budget.parse(plan.budget, cluster)
    if not recipe.data.validation:
        raise SettingsError(
            "data.validation is 0, but a search decides by validation rows; hold some out"
        )
    pace, labels, num_features = _measured(recipe, cluster, sketched)
    shape = sizes(recipe, labels, num_features, cluster.cache)
    settings = recipe.model_dump(mode="json") | {recipes.RANGES: plan.ranges}
    space = spaces.of(settings, recipe, shape.num_parameters, "recipe")
    _check_size(plan, space)
    prior = Prior.of(space, recipe.batch.global_size, recipe.optimizer.name, plan.scaling_rule)
    capacity = Capacity.of(recipe, shape, cluster)
    seconds = None if budget is None else budget.seconds
    terms = Terms(plan, space, prior, pace, capacity.slots, seconds)
    return Setting(cluster, terms, capacity, budget, shape)


def create(plan: Plan, run: Directory) -> Setting:
    """Make the search `run`. Raises BerthaError for whatever is wrong, and then leaves nothing."""
    if (run.path / plans.PLAN).exists():
        raise JournalError(
            f"{run.address} holds a search already; `python -m tuning resume {run.address}` goes "
            "on with it, --run names another"
        )
    made = setting(plan)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        plan.save(run.path)
    except OSError as error:
        raise JournalError(
            f"{run.address}: cannot be written: {error}; name another with --run"
        ) from None
    run.publish(plans.PLAN)
    return made


@contextmanager
def opened(run: Directory, made: Setting) -> Iterator[Search]:
    """The search in `run`, held by this process while the block runs."""
    terms = made.terms
    recipe = terms.plan.recipe
    sign = -1 if lower_is_better(recipe.metric) else 1
    default = spaces.point_of(recipe, terms.space)
    journal = Journal(run.path, terms.prior.shown(terms.space), default, sign, Holder(run))
    facts = {"total_tokens": terms.pace.total_tokens, "slots": terms.slots}
    journal.note({"sampler": terms.plan.sampler, **facts})
    journal.measures(recipe.metric)
    try:
        yield Search(Director(terms, journal), made.capacity, made.cluster, run)
    finally:
        journal.close()
        shutil.rmtree(run.path / "ray", ignore_errors=True)


def _measured(
    recipe: Recipe, cluster: ClusterSpec, sketched: bool
) -> tuple[Pace, tuple[str, ...], int]:
    """The pace, the labels, and the features of a linear model."""
    if sketched:
        sketch = prepare.sketch(recipe, cluster.cache)
        rows, lengths = sketch.num_train, sketch.lengths
        tokens = int(lengths.mean() * rows)
        held_out = sketch.report.sequences or sketch.report.rows
        pace = Pace.of(recipe, rows, tokens, held_out["validation"])
        return pace, sketch.labels, int(lengths[0])
    prepared = prepare.prepare(recipe, cluster.cache, progress.encoding())
    lengths = prepared.train.samples.lengths
    pace = Pace.of(recipe, len(prepared.train), int(lengths.sum()), len(prepared.validation))
    return pace, prepared.labels, int(lengths[0])


def _check_size(plan: Plan, space: Space) -> None:
    """Raise SettingsError where the sampler cannot search this space with so many trials."""
    if plan.sampler == "pbt":
        pbt.check(space)
        if plan.seeds != 1 or plan.trials < 3:
            raise SettingsError(
                f"--sampler pbt with --trials {plan.trials} --seeds {plan.seeds}: give --trials 3 "
                "or more, a population of two beside the recipe's own, and --seeds 1: a schedule "
                "that was found while training is not repeated with another seed"
            )
    if plan.sampler != "grid":
        return
    own = spaces.point_of(plan.recipe, space)
    points = 1 + sum(point != own for point in grid(space))
    if points > plan.trials:
        raise SettingsError(
            f"--trials {plan.trials}: the grid has {points} points, the recipe's own among them; "
            f"raise --trials to {points}, shorten the lists, or choose another --sampler"
        )
