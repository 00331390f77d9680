"""What a search would do, without starting anything: `bertha tune reviews.yaml --dry-run`."""

from collections.abc import Iterator
from pathlib import Path

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.hardware.catalog import CatalogError
from trainers.tracking.progress import format_duration
from tuning.algorithms import pbt, repeats, scheduler
from tuning.execution.controller import PreparedSearch
from tuning.forecast import ForecastError, forecast_search
from tuning.results.deployment import ALIAS
from tuning.space.scaling_rule import RATE
from tuning.space.space import get_value
from tuning.store.budget import Spend


def describe_search(prepared: PreparedSearch, probed: Path | None = None) -> Iterator[str]:
    """Yield lines for a person. probed: what a probe of the devices has measured."""
    config, schedule, capacity = prepared.config, prepared.schedule, prepared.capacity
    width = max(len(key) for key in prepared.space)
    for index, (key, dimension) in enumerate(prepared.space.items()):
        own = get_value(config.recipe, key)
        yield f"{'' if index else 'space':<9} {key:<{width}}  {dimension}  (the recipe: {own})"
    if prepared.scaling_rule.reference is not None:
        how = "linearly" if config.recipe.optimizer.name == "sgd" else "with the square root"
        yield (
            f"rule      {RATE} is that at batch size {prepared.scaling_rule.reference}; it grows "
            f"{how} of the batch size (--no-scaling-rule)"
        )
    yield f"metric    {config.recipe.metric}, on the validation rows"
    yield f"trials    {config.trials} by {config.sampler}, the first with the recipe's own settings"
    yield from _scheduler_lines(prepared)
    num_repeats = (config.seeds - 1) * (repeats.FINALISTS + 1)
    if num_repeats:
        yield (
            f"seeds     the best {repeats.FINALISTS} and the recipe's own are trained with "
            f"{config.seeds - 1} other seed(s): up to {num_repeats} runs more"
        )
    yield (
        f"capacity  {capacity.slots} trial(s) at once, {capacity.devices} device(s) each, on "
        f"cluster {prepared.cluster.name}"
    )
    yield (
        f"a trial   {schedule.total_tokens:,.0f} tokens to its end, in "
        f"{schedule.total_samples:,} samples; all: at most "
        f"{(config.trials + num_repeats) * schedule.total_tokens:,.0f}"
    )
    yield from _forecast_lines(prepared, probed)
    if prepared.max_seconds is not None:
        yield (
            f"budget    {config.budget}: the cluster is held for at most "
            f"{format_duration(prepared.max_seconds)}"
        )
    if config.deployment:
        yield "engines   of the best of each model are measured: metric, p95 latency, price"
    if config.register_as is not None:
        yield f"register  the winner as {config.register_as}@{ALIAS} in {config.registry}"


def _scheduler_lines(prepared: PreparedSearch) -> Iterator[str]:
    config, schedule = prepared.config, prepared.schedule
    yield f"evals     {schedule.num_evals} a trial, after equal shares of its samples"
    if config.population_size:
        yield (
            f"rounds    {pbt.ROUNDS} of equal tokens, {config.population_size} members; "
            "after each, the worst quarter go on from the best"
        )
    elif config.scheduler != "none":
        shares = ", ".join(f"{rung / schedule.total_tokens:.1%}" for rung in schedule.rungs)
        how = (
            f"one in {scheduler.REDUCTION_FACTOR} goes on"
            if config.scheduler == "asha"
            else "the better half goes on"
        )
        yield f"stops     {config.scheduler}: compared after {shares} of the tokens; {how}"


def _forecast_lines(prepared: PreparedSearch, probed: Path | None) -> Iterator[str]:
    """Yield the expected time and dollars of the search, with the interval of nine in ten.

    It ends where no trial is stopped early.
    """
    try:
        forecast = forecast_search(prepared, probed)
    except (ForecastError, CatalogError) as error:
        yield f"time      not known: {error}"
        return

    def format_interval(expected: float, most: float) -> str:
        low, middle, high = (
            Spend.for_seconds(seconds, prepared.cluster)
            for seconds in (expected / NINE_IN_TEN, expected, most * NINE_IN_TEN)
        )
        return f"{middle} (nine in ten: {low} to {high})"

    yield (
        f"time      {format_interval(forecast.expected_seconds, forecast.search_seconds)}: the "
        f"whole search, by {forecast.origin}"
    )
