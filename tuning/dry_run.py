"""What a search would do, without starting anything.

python -m tuning reviews.yaml --dry-run
"""

from collections.abc import Iterator
from pathlib import Path

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.hardware.catalog import CatalogueError
from tuning.algorithms import pbt, repeats, scheduler
from tuning.forecast import ForecastError, forecast
from tuning.results.registration import ALIAS
from tuning.space.scaling_rule import RATE
from tuning.space.space import value_of
from tuning.store.budget import Spend
from tuning.study import Setting


def describe(made: Setting, probed: Path | None = None) -> Iterator[str]:
    """Lines for a person. probed: what a probe of the devices has measured."""
    terms, cluster = made.terms, made.cluster
    plan, pace = terms.plan, terms.pace
    width = max(len(key) for key in terms.space)
    for index, (key, dimension) in enumerate(terms.space.items()):
        own = value_of(plan.recipe, key)
        yield f"{'' if index else 'space':<9} {key:<{width}}  {dimension}  (the recipe: {own})"
    yield from _rule(made)
    yield f"metric    {plan.recipe.metric}, on the validation rows"
    yield f"trials    {plan.trials} by {plan.sampler}, the first with the recipe's own settings"
    yield from _stops(made)
    repeated = (plan.seeds - 1) * (repeats.FINALISTS + 1)
    if repeated:
        yield (
            f"seeds     the best {repeats.FINALISTS} and the recipe's own are trained with "
            f"{plan.seeds - 1} other seed(s): up to {repeated} runs more"
        )
    yield (
        f"capacity  {terms.slots} trial(s) at once, {made.capacity.devices} device(s) each, on "
        f"cluster {cluster.name}"
    )
    yield (
        f"a trial   {pace.total_tokens:,.0f} tokens to its end, in {pace.total_samples:,} samples; "
        f"all: at most {(plan.trials + repeated) * pace.total_tokens:,.0f}"
    )
    yield from _forecast(made, probed)
    if made.budget is not None:
        yield f"budget    {plan.budget}: the cluster is held for at most {made.budget}"
    if plan.deployment:
        yield "engines   of the best of each model are measured: metric, p95 latency, price"
    if plan.register_as is not None:
        yield f"register  the winner as {plan.register_as}@{ALIAS} in {plan.registry}"


def _forecast(made: Setting, probed: Path | None) -> Iterator[str]:
    """Time and dollars, and how wrong they may be."""
    try:
        found = forecast(made, probed)
    except (ForecastError, CatalogueError) as error:
        yield f"time      not known: {error}"
        return
    cluster = made.cluster

    def between(seconds: float) -> str:
        low, high = (
            Spend.of(seconds / NINE_IN_TEN, cluster),
            Spend.of(seconds * NINE_IN_TEN, cluster),
        )
        return f"{Spend.of(seconds, cluster)} (nine in ten: {low} to {high})"

    slots = f"on {made.terms.slots} trial(s) at once"
    yield f"time      a trial {between(found.trial_seconds)}, by {found.origin}"
    yield f"          the search, {slots}, {between(found.expected_seconds)} as trials are stopped"
    yield f"          at most {between(found.search_seconds)}, if none is"


def _rule(made: Setting) -> Iterator[str]:
    terms = made.terms
    if terms.prior.reference is None:
        return
    name = terms.plan.recipe.optimizer.name
    how = "linearly" if name == "sgd" else "with the square root"
    yield (
        f"rule      {RATE} is that at batch size {terms.prior.reference}; it grows {how} of the "
        "batch size (--no-scaling-rule)"
    )


def _stops(made: Setting) -> Iterator[str]:
    pace, kind = made.terms.pace, made.terms.plan.scheduler
    yield f"looks     {pace.looks} a trial, after equal shares of its samples"
    if made.terms.plan.sampler == "pbt":
        yield (
            f"rounds    {pbt.ROUNDS} of equal tokens, {made.terms.plan.trials - 1} members; "
            "after each, the worst quarter go on from the best"
        )
        return
    if kind == "none":
        return
    shares = ", ".join(f"{rung / pace.total_tokens:.1%}" for rung in pace.rungs)
    how = f"one in {scheduler.REDUCTION} goes on" if kind == "asha" else "the better half goes on"
    yield f"stops     {kind}: compared after {shares} of the tokens; {how}"
