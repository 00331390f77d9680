"""What a dry run says of a search, line by line."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.planning import probe
from cluster.planning.probe import Measurement, Probe, ProbeCase
from cluster.spec import ClusterMetadata
from tests.support.searches import SPACE, prepared_search
from tuning.dry_run import describe_search
from tuning.execution.controller import PreparedSearch
from tuning.forecast import forecast_search
from tuning.space.scaling_rule import RATE
from tuning.space.space import Choices
from tuning.store.budget import Spend


def describe(prepared: PreparedSearch | None = None, **asked: Any) -> dict[str, str]:
    """The lines by their first word; one that begins with none is joined to the one before."""
    found: dict[str, str] = {}
    for line in describe_search(prepared or prepared_search(**asked)):
        name = line[:9].strip() or list(found)[-1]
        found[name] = f"{found[name]} / {line[10:]}" if name in found else line[10:]
    return found


def with_optimizer(prepared: PreparedSearch, name: str) -> PreparedSearch:
    recipe = prepared.config.recipe
    changed = recipe.model_copy(
        update={"optimizer": recipe.optimizer.model_copy(update={"name": name})}
    )
    return replace(prepared, config=prepared.config.model_copy(update={"recipe": changed}))


def test_every_setting_is_listed_with_its_range_and_the_recipe_s_own_value() -> None:
    space = describe()["space"]
    first, second = space.split(" / ")
    assert first.startswith(f"{RATE}  ") and first.endswith("(the recipe: 1e-05)")
    assert second.startswith("batch.global_size") and second.endswith("(the recipe: 16)")
    assert first.index(str(SPACE[RATE])) == second.index(str(Choices((8, 16, 32)))), "in columns"


@pytest.mark.parametrize(("optimizer", "how"), [("sgd", "linearly"), ("adamw", "with the square")])
def test_the_scaling_rule_says_how_the_rate_grows(optimizer: str, how: str) -> None:
    said = describe(with_optimizer(prepared_search(), optimizer))["rule"]
    assert f"batch size 16; it grows {how}" in said and said.endswith("(--no-scaling-rule)")
    assert "rule" not in describe(scaling_rule=False)


def test_repeats_are_announced_and_counted_in_the_tokens() -> None:
    said = describe(trials=10, seeds=3)
    assert "the best 2 and the recipe's own" in said["seeds"]
    assert "2 other seed(s): up to 6 runs more" in said["seeds"]
    assert said["a trial"] == "40,000 tokens to its end, in 2,000 samples; all: at most 640,000"
    single = describe(trials=10, seeds=1)
    assert "seeds" not in single and single["a trial"].endswith("at most 400,000")


@pytest.mark.parametrize(
    ("scheduler", "how"), [("asha", "one in 3 goes on"), ("median", "the better half goes on")]
)
def test_a_scheduler_says_when_it_compares_and_who_goes_on(scheduler: str, how: str) -> None:
    prepared = prepared_search(scheduler=scheduler)
    four = replace(prepared, schedule=replace(prepared.schedule, num_evals=4))
    said = describe(four)
    assert said["stops"] == f"{scheduler}: compared after 25.0%, 50.0% of the tokens; {how}"
    assert said["evals"].startswith("4 a trial")
    assert "stops" not in describe(scheduler="none")


def test_a_population_has_rounds_in_place_of_stops() -> None:
    said = describe(sampler="pbt", trials=9)
    assert "8 members; after each, the worst quarter go on from the best" in said["rounds"]
    assert "stops" not in said and said["trials"].startswith("9 by pbt")


def test_what_was_asked_for_besides_is_named() -> None:
    plain = describe()
    assert not {"budget", "engines", "register"} & plain.keys()
    held = replace(
        prepared_search(budget="2h", deployment=True, register_as="tiny", registry="s3://b/r"),
        max_seconds=7200.0,
    )
    said = describe(held)
    assert said["budget"] == "2h: the cluster is held for at most 2h00m"
    assert said["engines"].startswith("of the best of each model are measured")
    assert said["register"] == "the winner as tiny@best in s3://b/r"


def test_on_hardware_that_is_not_known_the_way_out_is_told() -> None:
    said = describe()
    assert said["time"].startswith("not known: cluster here names no kind of machine")
    assert said["time"].endswith("give --probed FILE")
    assert said["capacity"] == "1 trial(s) at once, 1 device(s) each, on cluster here"


@pytest.fixture
def probed(tmp_path: Path) -> Iterator[Path]:
    cases = [ProbeCase(64, 2, 128, 1000, tokens, 16, 512) for tokens in (16, 32, 64, 128)]
    timed = tuple(Measurement(case, 1, 1e-3 * case.max_tokens / 16) for case in cases)
    probe.write_probe(tmp_path / "probe.json", Probe("cpu", "A box", "fp32", 8e9, timed))
    yield tmp_path / "probe.json"


def test_one_time_is_told_with_its_interval_and_dollars(probed: Path) -> None:
    prepared = prepared_search()
    priced = replace(prepared, cluster=replace(
        prepared.cluster, metadata=ClusterMetadata(price_usd_per_hour=3.6)
    ))  # fmt: skip
    (line,) = [each for each in describe_search(priced, probed) if "nine in ten" in each]
    found = forecast_search(priced, probed)
    assert found.expected_seconds < found.search_seconds
    bounds = (
        found.expected_seconds / NINE_IN_TEN,
        found.expected_seconds,
        found.search_seconds * NINE_IN_TEN,
    )
    low, middle, high = (str(Spend.for_seconds(each, priced.cluster)) for each in bounds)
    assert "$" in middle and low != middle != high
    assert line == (
        f"time      {middle} (nine in ten: {low} to {high}): the whole search, by a probe of A box"
    )
