"""The controller and its journal, over a made-up surface: no Ray, no model."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from cluster.settings import SettingsError
from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.searches import (
    RECIPE,
    SCHEDULE,
    SPACE,
    FakeCluster,
    ProcessKilled,
    as_dicts,
    open_journal,
    prepared_search,
)
from trainers.config import recipe as recipes
from tuning.algorithms.eval_schedule import EvalSchedule
from tuning.algorithms.trial import Trial, TrialEvaluation, without_repeats
from tuning.execution.controller import SearchController
from tuning.space.scaling_rule import RATE
from tuning.space.space import extract_point
from tuning.store.budget import Spend, estimate_next_improvement, is_perfect, parse_budget
from tuning.store.config import load_search_config


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[Trial]:
    """The trials of a search that nobody kills."""
    (tmp_path / "undisturbed").mkdir()
    kept = open_journal(tmp_path / "undisturbed", prepared_search())
    FakeCluster(SearchController(prepared_search(), kept, lambda line: None)).run()
    return kept.trials()


def test_a_search_finds_the_peak_and_stops_most_trials(undisturbed: list[Trial]) -> None:
    own = without_repeats(undisturbed)
    assert len(own) == 12 and own[0].settings == extract_point(RECIPE, SPACE)
    assert own[0].state == "complete"
    states = [trial.state for trial in own]
    assert states.count("stopped") >= 6
    best = max(own, key=lambda trial: trial.score or 0)
    assert abs(math.log10(float(best.search_point[RATE] or 1)) + 3.5) < 0.6
    assert best.number != 0 and best.state == "complete"
    repeats = [(trial.repeats, trial.seed) for trial in undisturbed if trial.repeats is not None]
    assert len(repeats) == 6 and {seed for _, seed in repeats} == {1, 2}
    assert {number for number, _ in repeats} >= {0, best.number}


@pytest.mark.parametrize("moment", [0, 1, 3, 8, 15, 25, 33, 40])
def test_a_search_killed_at_any_moment_ends_the_same(
    tmp_path: Path, undisturbed: list[Trial], moment: int
) -> None:
    kept = open_journal(tmp_path, prepared_search())
    with pytest.raises(ProcessKilled):
        FakeCluster(SearchController(prepared_search(), kept, lambda line: None), moment).run()
    again = open_journal(tmp_path, prepared_search())
    FakeCluster(SearchController(prepared_search(), again, lambda line: None)).run()
    assert as_dicts(again.trials()) == as_dicts(undisturbed)


@pytest.mark.parametrize("moment", [3, 9, 10, 11, 17])
def test_a_population_killed_at_any_moment_ends_the_same(tmp_path: Path, moment: int) -> None:
    rounds, ended = prepared_search({RATE: SPACE[RATE]}, sampler="pbt", trials=5, seeds=1), []
    for name, moments in (("whole", [10**9]), ("killed", [moment, 10**9])):
        (tmp_path / name).mkdir()
        for until in moments:
            kept = open_journal(tmp_path / name, rounds)
            with suppress(ProcessKilled):
                FakeCluster(SearchController(rounds, kept, lambda line: None), until).run()
        ended.append(as_dicts(kept.trials()))
    assert ended[0] == ended[1] and len(ended[0]) == 1 + 4 * 4
    assert [t["state"] for t in ended[0]] == ["complete"] + ["stopped"] * 12 + ["complete"] * 4


def test_a_journal_with_half_a_line_is_read_to_the_line_before(tmp_path: Path) -> None:
    kept = open_journal(tmp_path, prepared_search())
    with pytest.raises(ProcessKilled):
        FakeCluster(SearchController(prepared_search(), kept, lambda line: None), 20).run()
    before = kept.trials()
    path = tmp_path / "study.journal"
    path.write_bytes(path.read_bytes() + b'{"op_code":7,"trial')
    again = open_journal(tmp_path, prepared_search())
    assert as_dicts(again.trials()) == as_dicts(before)
    FakeCluster(SearchController(prepared_search(), again, lambda line: None)).run()
    for line in path.read_text().splitlines():
        json.loads(line)


def test_the_lock_of_a_killed_writer_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "study.journal").touch()
    (tmp_path / "study.journal.lock").symlink_to(tmp_path / "study.journal")
    kept = open_journal(tmp_path, prepared_search())
    assert kept.trials() == []


def test_optuna_reads_the_journal(tmp_path: Path, undisturbed: list[Trial]) -> None:
    path = tmp_path / "undisturbed" / "study.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == len(undisturbed)
    assert study.best_value == max(t.score or 0.0 for t in undisturbed if t.state == "complete")
    assert study.trials[0].params == extract_point(RECIPE, SPACE)


def test_lower_metrics_are_kept_as_they_are(tmp_path: Path) -> None:
    kept = open_journal(tmp_path, prepared_search(), sign=-1)
    controller = SearchController(prepared_search(), kept, lambda line: None)
    assert controller.next_trial() is not None
    controller.on_evaluation(0, TrialEvaluation(10, -0.7), 1.0)
    kept = open_journal(tmp_path, prepared_search(), sign=-1)
    assert kept.trials()[0].curve == (TrialEvaluation(10, -0.7),)
    text = (tmp_path / "study.journal").read_text()
    assert '"intermediate_value":0.7' in text


def test_an_evaluation_that_was_heard_is_not_heard_again(tmp_path: Path) -> None:
    kept = open_journal(tmp_path, prepared_search())
    controller = SearchController(prepared_search(), kept, lambda line: None)
    controller.next_trial()
    assert controller.on_evaluation(0, TrialEvaluation(10, 0.7), 1.0) and controller.on_evaluation(
        0, TrialEvaluation(10, 0.7), 1.0
    )
    assert controller.trials[0].curve == (TrialEvaluation(10, 0.7),)


def test_failures_are_remembered_and_the_search_goes_on(tmp_path: Path) -> None:
    kept = open_journal(tmp_path, prepared_search(trials=3, seeds=1))
    controller = SearchController(prepared_search(trials=3, seeds=1), kept, lambda line: None)
    for number in (0, 1):
        trial = controller.next_trial()
        assert trial is not None and trial.number == number
        controller.on_end(number, "failed", 1.0, "the loss is nan")
    controller.next_trial()
    assert not controller.on_evaluation(2, TrialEvaluation(10, math.nan), 1.0), (
        "not a number is a failure"
    )
    assert controller.next_trial() is None and controller.is_finished
    assert [t.state for t in controller.trials] == ["failed"] * 3


def test_what_all_trials_share_ends_the_search(tmp_path: Path) -> None:
    kept = open_journal(tmp_path, prepared_search())
    controller = SearchController(prepared_search(), kept, lambda line: None)
    controller.next_trial()
    controller.on_invalid(0, "data.csv: no such file")
    assert controller.next_trial() is None and controller.is_finished
    assert controller.invalid_reason == "data.csv: no such file"


def test_a_budget_of_time_ends_the_search_but_not_its_first_trial(tmp_path: Path) -> None:
    short = replace(prepared_search(), max_seconds=0.0)
    kept = open_journal(tmp_path, short)
    FakeCluster(SearchController(short, kept, lambda line: None)).run()
    assert [trial.state for trial in kept.trials()] == ["complete"]


def test_evaluations_are_scheduled_by_samples_not_by_steps() -> None:
    for size in (8, 16, 100, 2000):
        recipe = recipes.parse_recipe(
            {**RECIPE.model_dump(mode="json"), "batch": {"global_size": size, "max_length": 64}}
        )
        paced = SCHEDULE.apply_to(recipe)
        every = paced.evaluation.every_steps
        assert every is not None
        assert abs(every * size - 2000 / SCHEDULE.num_evals) <= max(
            size / 2, size - 2000 / SCHEDULE.num_evals
        )
        assert paced.stopping.patience is not None and paced.checkpoints.keep == 1
        assert abs(paced.stopping.patience * every * size - 2000) < every * size
    assert SCHEDULE.rungs[-1] == SCHEDULE.total_tokens / 2 and SCHEDULE.total_tokens == 40_000


def test_a_number_of_steps_to_end_at_is_a_number_of_samples() -> None:
    values = RECIPE.model_dump(mode="json")
    ends = recipes.parse_recipe({**values, "stopping": {"epochs": 5, "max_steps": 100}})
    schedule = EvalSchedule.for_recipe(ends, 1000, 20_000, 100)
    larger = recipes.parse_recipe({**ends.model_dump(mode="json"), "batch": {"global_size": 64}})
    assert schedule.apply_to(larger).stopping.max_steps == 25
    assert schedule.apply_to(ends).stopping.max_steps == 100 and schedule.total_samples == 1600


@pytest.fixture
def priced() -> Iterator[ClusterSpec]:
    metadata = ClusterMetadata(price_usd_per_hour=10.0, power_watts=500.0)
    yield ClusterSpec("priced", "aws", 4, metadata)


def test_budgets(priced: ClusterSpec) -> None:
    hours = {"2h": 2, "90m": 1.5, "0.5d": 12, "50USD": 1.25, "50$": 1.25, "3 kWh": 1.5}
    for given, expected in hours.items():
        assert parse_budget(given, priced) == pytest.approx(expected * 3600), given
    assert Spend.for_seconds(3600, priced) == Spend(3600, 40.0, 2.0)
    assert "$40.00, 2.00 kWh" in str(Spend.for_seconds(3600, priced))


@pytest.mark.parametrize("given", ["2", "h", "-2h", "0h", "two hours", "2 parsecs", "inf h"])
def test_a_budget_that_is_none(given: str, priced: ClusterSpec) -> None:
    with pytest.raises(SettingsError, match="2h, 50USD, 3kWh"):
        parse_budget(given, priced)


@pytest.mark.parametrize(("given", "field"), [("5USD", "price_usd"), ("5kWh", "power_watts")])
def test_a_budget_without_a_price(given: str, field: str) -> None:
    with pytest.raises(SettingsError, match=f"names no metadata.{field}"):
        parse_budget(given, ClusterSpec("here", "local", 1, ClusterMetadata()))


def test_an_even_chance_costs_as_many_trials_as_there_were(priced: ClusterSpec) -> None:
    assert estimate_next_improvement([60.0, 120.0, 180.0], priced, slots=2).seconds == 180.0


@pytest.mark.parametrize(
    ("metric", "perfect", "worse"),
    [("f1", 1.0, 0.999), ("accuracy", 1.0, 0.0), ("r2", 1.0, -4.9), ("loss", 0.0, 1e-3),
     ("mae", 0.0, 1.0), ("perplexity", 1.0, 1.5)],
)  # fmt: skip
def test_nothing_is_better_than_a_perfect_score(metric: str, perfect: float, worse: float) -> None:
    assert is_perfect(metric, perfect) and not is_perfect(metric, worse)


def test_more_trials_follow_the_repeats_of_a_search_that_has_ended(
    tmp_path: Path, undisturbed: list[Trial]
) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        kept = open_journal(tmp_path / name, prepared_search())
        FakeCluster(SearchController(prepared_search(), kept, lambda line: None)).run()
    longer = replace(prepared_search(), config=prepared_search().config.with_trials(16))
    for name, moments in (("whole", [10**9]), ("killed", [4, 10**9])):
        for moment in moments:
            kept = open_journal(tmp_path / name, longer)
            with suppress(ProcessKilled):
                FakeCluster(SearchController(longer, kept, lambda line: None), moment).run()
    trials = kept.trials()
    assert as_dicts(trials) == as_dicts(open_journal(tmp_path / "whole", longer).trials())
    assert as_dicts(trials[: len(undisturbed)]) == as_dicts(undisturbed)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    own = without_repeats(trials)
    assert len(own) == 16 and len({str(trial.settings) for trial in own}) == 16
    finalists = {trial.repeats for trial in trials} - {None}
    best = max((trial for trial in own if trial.state == "complete"), key=lambda t: t.score or 0)
    assert best.number in finalists
    assert SearchController(longer, kept, lambda line: None).is_finished


def test_a_search_only_grows(tmp_path: Path) -> None:
    config = prepared_search().config
    assert config.with_trials(12) is config
    with pytest.raises(SettingsError, match=r"--trials 11: the search has 12; .* 12 or more"):
        config.with_trials(11)
    with pytest.raises(SettingsError, match=r"the population of --sampler pbt keeps its 11"):
        config.model_copy(update={"sampler": "pbt"}).with_trials(20)
    config.with_trials(32).save(tmp_path)
    assert load_search_config(tmp_path) == config.with_trials(32)
    with pytest.raises(SettingsError, match=r"holds no search .*did you mean"):
        load_search_config(tmp_path.with_name(tmp_path.name + "x"))
