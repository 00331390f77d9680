"""What a search came to: the winner judged once on the test rows, its bundle, `RUN/result.json`.

The search decides by validation rows alone. Only the winner, and the recipe's own settings to
compare with, are then shown the test rows, once: a trial that has been judged is not judged again.
With `deployment`, so are the best of each other model, whose engines are measured.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.config.recipe import lower_is_better
from trainers.runtime.fit import fit
from trainers.storage.atomic import written_aside
from trainers.storage.directory import Directory
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms import pareto, repeats
from tuning.algorithms.pareto import Variant
from tuning.algorithms.repeats import Standing, Verdict
from tuning.algorithms.trial import Trial, searched
from tuning.execution.tuner import Search, SearchError
from tuning.results.registration import register
from tuning.store import budget
from tuning.store.budget import Spend
from tuning.store.reader import RESULT


def conclude(search: Search, run: Directory) -> dict[str, Any]:
    """Name and judge the winner; leave its bundle and the result in `run`.

    Raises SearchError where no trial trained to its end.
    """
    director = search.director
    if (run.path / RESULT).is_file() and not search.clock.spans:
        return dict(json.loads((run.path / RESULT).read_bytes()))  # it had ended before
    verdict = repeats.verdict(director.trials)
    if verdict is None:
        why = next((trial.reason for trial in director.trials if trial.reason), "")
        raise SearchError(f"{run.address}: no trial trained to its end; the first said: {why}")
    plan = director.terms.plan
    trials, winner = director.trials, verdict.winner
    offered = pareto.candidates(trials, winner) if plan.deployment else []
    judged = {
        number: _judge(search, number)
        for number in sorted({winner, 0, *offered})
        if trials[number].state == "complete"
    }
    measured = _measured(search, offered)
    bundle = run.path / "bundle"
    with written_aside(bundle) as aside:
        _copy_bundle(search.directory(winner), aside)
    run.publish(bundle.name)
    result = result_of(search, verdict, judged)
    result["variants"] = [vars(variant) for variant in measured]
    result["registered"] = _registered(search, bundle, run.address, verdict)
    run.leave(RESULT, json.dumps(result, indent=2) + "\n")
    return result


def spend(search: Search) -> dict[str, Any]:
    """What the search has cost, and what the next improvement is expected to cost."""
    director, cluster = search.director, search.cluster
    own = [trial for trial in searched(director.trials) if trial.state != "running"]
    paid = Spend.of(director.held, cluster)
    after = budget.next_improvement([t.seconds for t in own], cluster, director.terms.slots)
    return {
        "seconds": paid.seconds,
        "usd": paid.usd,
        "kwh": paid.kwh,
        "trial_seconds": sum(trial.seconds for trial in director.trials),
        "tokens": sum(trial.tokens for trial in director.trials),
        "whole_run_tokens": director.terms.pace.total_tokens,
        "tune_overhead": search.clock.overhead(director.terms.slots),
        "even_chance_of_better": {"seconds": after.seconds, "usd": after.usd, "kwh": after.kwh},
    }


def _judge(search: Search, number: int) -> dict[str, Any]:
    """The metrics of a trial's best weights on the test rows, with a bundle of them."""
    director = search.director
    trial = director.trials[number]
    cluster = search.capacity.cluster(search.cluster)
    if not search.cluster.is_this_machine:
        cluster = cluster.at(search.capacity.devices)  # the device may be on another machine
    print(f"judging trial {number} on the test rows")
    outcome = fit(director.recipe(trial), cluster, search.directory(number).address, resume=True)
    return dict(outcome.result["test"])


def _measured(search: Search, offered: Sequence[int]) -> list[Variant]:
    """Every engine of the trials `offered`, left in their bundles."""
    if not offered:
        return []
    from tuning.results.engines import measured  # loads every backend

    metric = search.director.terms.plan.recipe.metric
    return [
        variant
        for number in offered
        for variant in measured(number, search.directory(number), metric, search.cluster)
    ]


def _registered(search: Search, bundle: Path, address: str, verdict: Verdict) -> str | None:
    """Where the winner is registered now; None where nobody asked for it."""
    plan = search.director.terms.plan
    if plan.register_as is None:
        return None
    note = f"the winner of {address}: {verdict.words()}"
    return register(bundle, plan.register_as, plan.registry, note)


def _copy_bundle(trial: RunDirectory, target: Path) -> None:
    """Copy the bundle of a trial, wherever it lives, into a directory of this machine."""
    if trial.store is not None:
        trial.store.download(trial.bundle.name, target)
    else:
        shutil.copytree(trial.bundle, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def result_of(
    search: Search, verdict: Verdict, judged: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Everything that a report needs, as plain values; metrics as they are, not as scores.

    judged: metrics on the test rows, by the number of the trial.
    """
    director, terms = search.director, search.director.terms
    metric = terms.plan.recipe.metric
    sign = -1 if lower_is_better(metric) else 1
    winner = verdict.winner
    won = search.directory(winner)
    return {
        "metric": metric,
        "lower_is_better": sign < 0,
        "space": {key: str(dimension) for key, dimension in terms.space.items()},
        "sampler": terms.plan.sampler,
        "scheduler": terms.plan.scheduler,
        "scaling_rule": terms.prior.reference is not None,
        "rungs": list(terms.pace.rungs),
        "winner": winner,
        "default_stands": verdict.default_stands,
        "margin": verdict.margin,
        "margin_standard_error": verdict.error,
        "is_sure": verdict.is_sure,
        "verdict": verdict.words(),
        "standings": [_standing(standing, sign) for standing in verdict.standings],
        "test": {str(number): metrics for number, metrics in judged.items()},
        "trials": [_trial(trial, sign) for trial in director.trials],
        "spend": spend(search),
        "lineage": _lineage(director.trials, winner),
        "repeat": _repeat(won),
        "bundle": f"{won.address.rsplit('/', 2)[0]}/bundle",
    }


def _repeat(trial: RunDirectory) -> str:
    """The command that repeats a trial."""
    recipe, fetched = f"{trial.address}/recipe.yaml", ""
    if trial.home:
        recipe, fetched = "recipe.yaml", f"aws s3 cp {recipe} . && "
    return f"{fetched}python -m trainers {recipe} --run {trial.address}-again"


def _lineage(trials: Sequence[Trial], number: int) -> list[dict[str, Any]]:
    """The settings that a trial was trained with, and from which token on; one but in a population.

    Where there are several, the command that repeats the last alone repeats only its settings.
    """
    line: list[dict[str, Any]] = []
    at: int | None = number
    while at is not None:
        trial = trials[at]
        at, tokens = (None, 0) if trial.parent is None else trial.parent
        line.append({"trial": trial.number, "settings": trial.point, "from_tokens": tokens})
    return line[::-1]


def _standing(standing: Standing, sign: int) -> dict[str, Any]:
    return {
        "trial": standing.number,
        "by_seed": {str(seed): sign * score for seed, score in standing.scores.items()},
        "mean": sign * standing.mean,
        "spread": standing.spread,
    }


def _trial(trial: Trial, sign: int) -> dict[str, Any]:
    return {
        "number": trial.number,
        "settings": trial.point,
        "seed": trial.seed,
        "state": trial.state,
        "reason": trial.reason,
        "repeats": trial.repeats,
        "parent": trial.parent,
        "best": None if trial.score is None else sign * trial.score,
        "curve": [[look.tokens, sign * look.score] for look in trial.curve],
        "tokens": trial.tokens,
        "seconds": trial.seconds,
    }
