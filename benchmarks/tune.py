"""Compare the work of a search with that of a grid, on a recorded surface and on live runs.

A surface is a table of learning curves, one run for each learning rate and batch size of a grid,
all trained to their end. Searches are then played over it, many in a second: the curve of a point
between the grid's is interpolated, in the logarithm of the rate, and costs as many tokens as a real
run. The result is the work until an evaluation comes within half a point of the grid's best,
as a share of the work of the whole grid. The best of many runs is lucky: with one run a point,
chance alone moves scores by more than half a point, so the surface is a mean over seeds.

    python benchmarks/tune.py record --seed 0       # an hour or two on two cores for each seed
    python benchmarks/tune.py play                  # writes results/tune.json
    python benchmarks/tune.py live runs/tuning-reviews-...     # the same share, of a real search
"""

import argparse
import itertools
import json
import math
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from record import record_surface
from surface import Surface

from cluster.costmodel.model_shape import ModelShape
from cluster.spec import load_cluster_spec
from trainers.config import recipe as recipes
from tuning.algorithms import scheduler
from tuning.algorithms.eval_schedule import EvalSchedule
from tuning.algorithms.sampler import Sampler
from tuning.algorithms.trial import Trial, TrialEvaluation
from tuning.execution.capacity import Capacity
from tuning.execution.controller import PreparedSearch, SearchController
from tuning.space.scaling_rule import RATE, SIZE, ScalingRule
from tuning.space.space import Choices, Range, Space, extract_point
from tuning.store.config import SearchConfig
from tuning.store.journal import Journal

SURFACE = Path(__file__).parent / "data" / "surface-reviews"  # a table a seed
RESULTS = Path(__file__).parent / "results" / "tune.json"
TOLERANCE = 0.005  # of the grid's best: half a point
SEEDS = 20
MAX_TRIALS = 60  # of one search; one that needs more failed


class GoalReached(Exception):
    """A search came within `TOLERANCE` of the grid's best."""


@dataclass
class WorkMeter:
    """Counts the tokens of a search, until it reaches the goal."""

    goal: float
    work: int = 0

    def train(
        self, curve: Iterator[TrialEvaluation], goes_on: Callable[[TrialEvaluation], bool]
    ) -> bool:
        """Follow `curve` while `goes_on`; return whether to its end. Raises GoalReached."""
        before = 0
        for evaluation in curve:
            self.work += evaluation.tokens - before
            before = evaluation.tokens
            if evaluation.score >= self.goal:
                raise GoalReached
            if not goes_on(evaluation):
                return False
        return True


Search = Callable[[Surface, WorkMeter, int], None]


def search_randomly(surface: Surface, meter: WorkMeter, seed: int) -> None:
    """Search randomly: uniform points, all trained to their end."""
    rng = random.Random(seed)
    for _ in range(MAX_TRIALS):
        meter.train(surface.curve_at(*_draw_point(surface, rng)), lambda evaluation: True)


def search_with_asha(surface: Surface, meter: WorkMeter, seed: int) -> None:
    """Search with ASHA: uniform points, stopped at rungs."""
    rng = random.Random(seed)
    finished: list[Trial] = []
    rungs = _make_schedule(surface, _default_point(surface)).rungs
    for number in range(1, MAX_TRIALS):
        evaluations: list[TrialEvaluation] = []

        def goes_on(
            evaluation: TrialEvaluation,
            number: int = number,
            evaluations: list[TrialEvaluation] = evaluations,
        ) -> bool:
            evaluations.append(evaluation)
            trial = Trial(number, {}, 0, curve=tuple(evaluations))
            return scheduler.should_continue("asha", trial, finished, rungs)

        meter.train(surface.curve_at(*_draw_point(surface, rng)), goes_on)
        finished.append(Trial(number, {}, 0, "stopped", tuple(evaluations)))


def search_with_tpe(surface: Surface, meter: WorkMeter, seed: int) -> None:
    """Search with Optuna's TPE and its defaults; all trials run to their end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(MAX_TRIALS):
        trial = study.ask()
        rate = trial.suggest_float("rate", surface.rates[0], surface.rates[-1], log=True)
        curve = list(surface.curve_at(rate, trial.suggest_categorical("size", surface.sizes)))
        meter.train(iter(curve), lambda evaluation: True)
        study.tell(trial, max(evaluation.score for evaluation in curve))


def make_bertha_search(
    default: Callable[[Surface], tuple[float, int]], sampler: Sampler = "gp"
) -> Search:
    """Return the search of `bertha tune`, one trial at a time, starting at `default`."""

    def search(surface: Surface, meter: WorkMeter, seed: int) -> None:
        prepared = _prepare_search(surface, default(surface), seed, sampler)
        space = prepared.scaling_rule.settings_space(prepared.space)
        settings = extract_point(prepared.config.recipe, prepared.space)
        with tempfile.TemporaryDirectory() as directory:
            journal = Journal(Path(directory), space, settings, 1)
            controller = SearchController(prepared, journal, lambda line: None)
            while (trial := controller.next_trial()) is not None:
                _train_trial(controller, trial, surface, meter)

    return search


def _train_trial(
    controller: SearchController, trial: Trial, surface: Surface, meter: WorkMeter
) -> None:
    rate, size = trial.settings[RATE], trial.settings[SIZE]
    assert isinstance(rate, float) and isinstance(size, int)

    def goes_on(evaluation: TrialEvaluation) -> bool:
        return controller.on_evaluation(trial.number, evaluation, 0.0)

    if meter.train(surface.curve_at(rate, size), goes_on):
        controller.on_end(trial.number, "complete", 0.0)


def _prepare_search(
    surface: Surface, default: tuple[float, int], seed: int, sampler: Sampler
) -> PreparedSearch:
    schedule = _make_schedule(surface, default)
    recipe = schedule.reference.model_copy(update={"seed": seed})
    space: Space = {
        RATE: Range(surface.rates[0], surface.rates[-1], log=True),
        SIZE: Choices(tuple(surface.sizes)),
    }
    return PreparedSearch(
        config=SearchConfig(
            recipe=recipe, cluster="local.yaml", trials=MAX_TRIALS, seeds=1, sampler=sampler
        ),
        cluster=load_cluster_spec("local.yaml"),
        shape=ModelShape(384, 6, 12, 1536, 30522, 512, 2, 384, "classification"),
        space=space,
        scaling_rule=ScalingRule.for_space(space, default[1], "adamw", True),
        schedule=schedule,
        capacity=Capacity(devices=1, slots=1),
    )


def _make_schedule(surface: Surface, default: tuple[float, int]) -> EvalSchedule:
    """Return a schedule of one epoch of one-token samples; the recipe has `default`."""
    rate, size = default
    recipe = recipes.load_recipe(
        "reviews", [f"optimizer.learning_rate={rate}", f"batch.global_size={size}"]
    )
    return EvalSchedule(recipe, surface.run_tokens, surface.run_tokens, surface.num_evals)


def _draw_point(surface: Surface, rng: random.Random) -> tuple[float, int]:
    low, high = surface.rates[0], surface.rates[-1]
    return low * (high / low) ** rng.random(), rng.choice(surface.sizes)


def _default_point(surface: Surface) -> tuple[float, int]:
    """Return the recipe's rate and batch size, or the grid's smallest size if it lacks it."""
    recipe = recipes.load_recipe("reviews")
    size = recipe.global_batch_size
    return recipe.learning_rate, size if size in surface.sizes else surface.sizes[0]


def _worst_corner(surface: Surface) -> tuple[float, int]:
    """Return the worst corner of the grid, as of a recipe with poor settings."""
    corners = itertools.product(surface.rates[:: len(surface.rates) - 1], surface.sizes)
    return min(corners, key=lambda corner: surface.curves[corner][-1].score)


SEARCHES: dict[str, Search] = {
    "random": search_randomly,
    "TPE": search_with_tpe,
    "ASHA": search_with_asha,
    "ours": make_bertha_search(_default_point),
    "ours, from a poor recipe": make_bertha_search(_worst_corner),
    "ours, with TPE": make_bertha_search(_default_point, "tpe"),
}


def work_shares(surface: Surface, search: Search, seeds: Sequence[int]) -> list[float]:
    """Return the work of `search` as a share of the grid's, by seed; inf if it failed."""
    shares = []
    for seed in seeds:
        meter = WorkMeter(surface.best - TOLERANCE)
        try:
            search(surface, meter, seed)
        except GoalReached:
            shares.append(meter.work / surface.total_tokens)
        else:
            shares.append(math.inf)
    return shares


def play_searches(surface: Surface, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Return the shares of all searches, by name and seed."""
    return {name: work_shares(surface, search, seeds) for name, search in SEARCHES.items()}


def format_table(surface: Surface, played: dict[str, list[float]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"Best of the grid's {len(surface.curves)} runs: {surface.best:.4f}."
    yield ""
    yield "| search | work, median | quartiles | worst | never |"
    yield "|---|---|---|---|---|"
    for name, unsorted_shares in played.items():
        shares = sorted(unsorted_shares)
        quarters = statistics.quantiles(shares, n=4) if len(shares) > 1 else shares * 3
        never = sum(math.isinf(share) for share in shares)
        yield (
            f"| {name} | {statistics.median(shares):.1%} | {quarters[0]:.1%} to {quarters[2]:.1%} "
            f"| {shares[-1]:.1%} | {never} of {len(shares)} |"
        )


def measure_live_search(run: Path, surface: Surface) -> str:
    """Describe the share of the grid's work that a real search took to reach the goal."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    sign = -1 if result["lower_is_better"] else 1
    work = 0
    for trial in result["trials"]:
        before = 0
        for tokens, value in trial["curve"]:
            work, before = work + tokens - before, tokens
            if sign * value >= surface.best - TOLERANCE:
                share = f"{work / surface.total_tokens:.1%} of the grid's work"
                return f"{run}: {share}, at trial {trial['number']}"
    share = f"{work / surface.total_tokens:.1%}"
    return f"{run}: not within half a point of the grid's best, after {share}"


def main() -> None:
    """Record a surface, play searches over it, or measure live ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["record", "play", "live"])
    parser.add_argument("runs", nargs="*", type=Path, help="directories of searches")
    parser.add_argument("--surface", type=Path, default=SURFACE, help="its directory")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the searches that are played")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where `play` stores its shares")
    parser.add_argument("--seed", type=int, default=0, help="of the surface that is recorded")
    options = parser.parse_args()
    if options.what == "record":
        record_surface(
            options.seed, options.surface / f"seed-{options.seed}.csv", os.cpu_count() or 1
        )
    elif options.what == "play":
        surface = Surface.from_directory(options.surface)
        played = play_searches(surface, range(options.seeds))
        for line in format_table(surface, played):
            print(line)
        known_shares = {
            name: [share if math.isfinite(share) else None for share in shares]
            for name, shares in played.items()
        }
        record = {"best": surface.best, "looks": surface.num_evals, "shares": known_shares}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    elif not options.runs:
        parser.error("name the directory of a search")
    else:
        for run in options.runs:
            print(measure_live_search(run, Surface.from_directory(options.surface)))


if __name__ == "__main__":
    main()
