"""The outcome of a search: the winner tested once, its bundle, and `RUN/result.json`.

The search decides by validation rows alone. Only the winner, and the recipe's own settings for
comparison, are then tested on the test rows, once; with `deployment` so are the best of each other
model, whose engines are measured.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.runtime.fit import fit
from trainers.storage.atomic import atomic_directory
from trainers.storage.directory import SyncedDirectory
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms import pareto, repeats
from tuning.algorithms.repeats import FinalistScore, Verdict
from tuning.algorithms.trial import Trial, without_repeats
from tuning.execution.tuner import Search, SearchError
from tuning.results.deployment import measure_engines, register_winner
from tuning.store.budget import Spend, estimate_next_improvement, is_perfect
from tuning.store.reader import RESULT, read_result


def conclude_search(search: Search, run: SyncedDirectory) -> dict[str, Any]:
    """Name and test the winner; leave its bundle and the result in `run`, and return the result.

    Raises SearchError if no trial trained to its end.
    """
    known = None if search.clock.spans else read_result(run.path)
    if known is not None:
        return known  # it had ended before
    trials, config = search.controller.trials, search.prepared.config
    verdict = repeats.compare_finalists(trials)
    if verdict is None:
        why = next((trial.reason for trial in trials if trial.reason), "")
        raise SearchError(f"{run.address}: no trial trained to its end; the first said: {why}")
    winner = verdict.winner
    candidates = pareto.best_of_each_model(trials, winner) if config.deployment else []
    tested = {
        number: _test_trial(search, number)
        for number in sorted({winner, 0, *candidates})
        if trials[number].state == "complete"
    }
    options = [option for number in candidates for option in measure_engines(search, number)]
    bundle = run.path / "bundle"
    with atomic_directory(bundle) as temporary:
        _copy_bundle(search.trial_directory(winner), temporary)
    run.publish_files(bundle.name)
    result = build_result(search, verdict, tested)
    result["variants"] = [vars(option) for option in options]
    result["registered"] = config.register_as and register_winner(
        bundle,
        config.register_as,
        config.registry,
        f"the winner of {run.address}: {verdict.describe()}",
    )
    run.write_shared(RESULT, json.dumps(result, indent=2) + "\n")
    return result


def summarize_spend(search: Search, winner_mean: float) -> dict[str, Any]:
    """Return what the search has cost, and what the next improvement is expected to cost.

    winner_mean: the winner's metric; where it is perfect, no cost of anything better is given.
    """
    cluster, slots = search.prepared.cluster, search.prepared.capacity.slots
    trials = search.controller.trials
    own = [trial.seconds for trial in without_repeats(trials) if trial.state != "running"]
    return {
        **vars(Spend.for_seconds(search.controller.held_seconds, cluster)),
        "trial_seconds": sum(trial.seconds for trial in trials),
        "tokens": sum(trial.tokens for trial in trials),
        "whole_run_tokens": search.prepared.schedule.total_tokens,
        "tune_overhead": search.clock.overhead_share(slots),
        "even_chance_of_better": None
        if is_perfect(search.prepared.config.recipe.metric, winner_mean)
        else vars(estimate_next_improvement(own, cluster, slots)),
    }


def build_result(
    search: Search, verdict: Verdict, tested: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Return all that a report needs, as plain values; metrics as they are, not as scores.

    tested: metrics on the test rows, by the number of the trial.
    """
    prepared, config, trials = search.prepared, search.prepared.config, search.controller.trials
    winner = search.trial_directory(verdict.winner)
    winner_mean = next(
        config.sign * each.mean for each in verdict.finalists if each.number == verdict.winner
    )
    return {
        "metric": config.recipe.metric,
        "lower_is_better": config.sign < 0,
        "space": {key: str(dimension) for key, dimension in prepared.space.items()},
        "sampler": config.sampler,
        "scheduler": config.scheduler,
        "scaling_rule": prepared.scaling_rule.reference is not None,
        "rungs": list(prepared.schedule.rungs),
        "winner": verdict.winner,
        "default_stands": verdict.default_stands,
        "margin": verdict.margin,
        "margin_standard_error": verdict.standard_error,
        "is_sure": verdict.is_significant,
        "verdict": verdict.describe(),
        "standings": [_finalist_entry(each, config.sign) for each in verdict.finalists],
        "test": {str(number): metrics for number, metrics in tested.items()},
        "trials": [_trial_entry(trial, config.sign) for trial in trials],
        "spend": summarize_spend(search, winner_mean),
        "lineage": _trace_lineage(trials, verdict.winner),
        "repeat": _repeat_command(winner),
        "bundle": f"{winner.address.rsplit('/', 2)[0]}/bundle",
    }


def _test_trial(search: Search, number: int) -> dict[str, Any]:
    """Return the metrics of a trial's best weights on the test rows; leave a bundle of them."""
    prepared, trial = search.prepared, search.controller.trials[number]
    cluster = prepared.capacity.trial_cluster(prepared.cluster)
    if not prepared.cluster.is_this_machine:
        cluster = cluster.with_workers(prepared.capacity.devices)  # its device is elsewhere
    print(f"testing trial {number} on the test rows")
    recipe, address = search.controller.build_recipe(trial), search.trial_directory(number).address
    return dict(fit(recipe, cluster, address, resume=True).result["test"])


def _copy_bundle(trial: RunDirectory, target: Path) -> None:
    """Copy the bundle of a trial, wherever it is stored, into a local directory."""

    def link_or_copy(source: str, destination: str) -> None:
        try:
            os.link(source, destination)
        except OSError:  # another file system, or one without hard links
            shutil.copy2(source, destination)

    if trial.store is not None:
        trial.store.download_directory(trial.bundle_path.name, target)
    else:
        shutil.copytree(trial.bundle_path, target, copy_function=link_or_copy, dirs_exist_ok=True)


def _repeat_command(trial: RunDirectory) -> str:
    recipe, fetch = f"{trial.address}/recipe.yaml", ""
    if trial.home:
        recipe, fetch = "recipe.yaml", f"aws s3 cp {recipe} . && "
    return f"{fetch}bertha train {recipe} --run {trial.address}-again"


def _trace_lineage(trials: Sequence[Trial], number: int) -> list[dict[str, Any]]:
    """Return the settings that a trial was trained with, each with the tokens it began at.

    One entry, except in a population, where `_repeat_command` repeats only the last.
    """
    lineage: list[dict[str, Any]] = []
    ancestor: int | None = number
    while ancestor is not None:
        trial = trials[ancestor]
        ancestor, tokens = (None, 0) if trial.parent is None else trial.parent
        entry = {"trial": trial.number, "settings": trial.settings, "from_tokens": tokens}
        lineage.insert(0, entry)
    return lineage


def _finalist_entry(finalist: FinalistScore, sign: int) -> dict[str, Any]:
    return {
        "trial": finalist.number,
        "by_seed": {str(seed): sign * score for seed, score in finalist.scores.items()},
        "mean": sign * finalist.mean,
        "spread": finalist.spread,
    }


def _trial_entry(trial: Trial, sign: int) -> dict[str, Any]:
    return {
        "number": trial.number,
        "settings": trial.settings,
        "seed": trial.seed,
        "state": trial.state,
        "reason": trial.reason,
        "repeats": trial.repeats,
        "parent": trial.parent,
        "best": None if trial.score is None else sign * trial.score,
        "curve": [[each.tokens, sign * each.score] for each in trial.curve],
        "tokens": trial.tokens,
        "seconds": trial.seconds,
    }
