"""How much work a search needs, against a grid's: on a recorded surface, and on live runs.

A surface is a table of learning curves, one run for each learning rate and batch size of a grid,
all trained to their end. Searches are then played over it, many times in seconds: a point between
the grid's is read off on the plane between its neighbours (in the logarithms of both), and costs
the tokens that it would have cost. Asked is the work until an evaluation comes within half a point
of the grid's best, as a share of the work of the whole grid. The best of many runs is lucky: with
one run a point, half a point is less than what luck alone does, and means over seeds are better.

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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import optuna
from record import record
from surface import Surface

from trainers.config import recipe as recipes
from tuning.algorithms import scheduler
from tuning.algorithms.eval_schedule import Pace
from tuning.algorithms.sampler import Sampler
from tuning.algorithms.trial import Look, Trial
from tuning.execution.controller import Director, Terms
from tuning.space.scaling_rule import RATE, SIZE, Prior
from tuning.space.space import Choices, Range, Space, point_of
from tuning.store.config import Plan
from tuning.store.journal import Journal

SURFACE = Path(__file__).parent / "data" / "surface-reviews"  # a table a seed
RESULTS = Path(__file__).parent / "results" / "tune.json"
WITHIN = 0.005  # of the grid's best: half a point
SEEDS = 20
MOST = 60  # trials of one search; what needs more never got there


class Reached(Exception):
    """A search came within reach of the grid's best."""


@dataclass
class Meter:
    """Counts the tokens of a search, until it reaches the goal."""

    goal: float
    work: int = 0

    def train(self, curve: Iterator[Look], goes_on: Callable[[Look], bool]) -> bool:
        """Train along `curve` until the search stops it; whether to the end. Raises Reached."""
        before = 0
        for look in curve:
            self.work += look.tokens - before
            before = look.tokens
            if look.score >= self.goal:
                raise Reached
            if not goes_on(look):
                return False
        return True


Search = Callable[[Surface, Meter, int], None]


def drawn(surface: Surface, meter: Meter, seed: int) -> None:
    """Random search: points drawn evenly, all trained to their end."""
    draw = random.Random(seed)
    for _ in range(MOST):
        meter.train(surface.curve(*_draw(surface, draw)), lambda look: True)


def plain_asha(surface: Surface, meter: Meter, seed: int) -> None:
    """Points drawn evenly, stopped at rungs."""
    draw, known = random.Random(seed), []
    rungs = _pace(surface, _default(surface)).rungs
    for number in range(1, MOST):
        looks: list[Look] = []

        def goes_on(look: Look, number: int = number, looks: list[Look] = looks) -> bool:
            looks.append(look)
            trial = Trial(number, {}, 0, curve=tuple(looks))
            return scheduler.goes_on("asha", trial, known, rungs)

        meter.train(surface.curve(*_draw(surface, draw)), goes_on)
        known.append(Trial(number, {}, 0, "stopped", tuple(looks)))


def plain_tpe(surface: Surface, meter: Meter, seed: int) -> None:
    """Optuna's TPE as it comes, over the learning rate and the batch size, all to their end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    for _ in range(MOST):
        trial = study.ask()
        rate = trial.suggest_float("rate", surface.rates[0], surface.rates[-1], log=True)
        curve = list(surface.curve(rate, trial.suggest_categorical("size", surface.sizes)))
        meter.train(iter(curve), lambda look: True)
        study.tell(trial, max(look.score for look in curve))


def ours(default: Callable[[Surface], tuple[float, int]], sampler: Sampler = "gp") -> Search:
    """What `python -m tuning` does, one trial at a time, from the recipe's own settings."""

    def search(surface: Surface, meter: Meter, seed: int) -> None:
        terms = _terms(surface, default(surface), seed, sampler)
        with tempfile.TemporaryDirectory() as place:
            shown, own = terms.prior.shown(terms.space), point_of(terms.plan.recipe, terms.space)
            with closing(Journal(Path(place), shown, own, 1)) as journal:
                director = Director(terms, journal, lambda line: None)
                while (trial := director.next()) is not None:
                    _train(director, trial, surface, meter)

    return search


def _train(director: Director, trial: Trial, surface: Surface, meter: Meter) -> None:
    rate, size = trial.point[RATE], trial.point[SIZE]
    assert isinstance(rate, float) and isinstance(size, int)

    def goes_on(look: Look) -> bool:
        return director.looked(trial.number, look, 0.0)

    if meter.train(surface.curve(rate, size), goes_on):
        director.ended(trial.number, "complete", 0.0)


def _terms(surface: Surface, default: tuple[float, int], seed: int, sampler: Sampler) -> Terms:
    pace = _pace(surface, default)
    recipe = pace.reference.model_copy(update={"seed": seed})
    space: Space = {
        RATE: Range(surface.rates[0], surface.rates[-1], log=True),
        SIZE: Choices(tuple(surface.sizes)),
    }
    plan = Plan(recipe=recipe, cluster="local.yaml", trials=MOST, seeds=1, sampler=sampler)
    return Terms(plan, space, Prior.of(space, default[1], "adamw", True), pace, slots=1)


def _pace(surface: Surface, default: tuple[float, int]) -> Pace:
    """One epoch of as many samples as tokens; the recipe's own are `default`."""
    rate, size = default
    recipe = recipes.load(
        "reviews", [f"optimizer.learning_rate={rate}", f"batch.global_size={size}"]
    )
    return Pace(recipe, surface.whole, surface.whole, surface.looks)


def _draw(surface: Surface, draw: random.Random) -> tuple[float, int]:
    low, high = surface.rates[0], surface.rates[-1]
    return low * (high / low) ** draw.random(), draw.choice(surface.sizes)


def _default(surface: Surface) -> tuple[float, int]:
    """The recipe's own settings, where the grid has such a batch size; else its middle one."""
    own = recipes.load("reviews")
    size = own.batch.global_size
    return own.optimizer.learning_rate, size if size in surface.sizes else surface.sizes[0]


def _corner(surface: Surface) -> tuple[float, int]:
    """The worst corner of the grid: a recipe with poor settings."""
    corners = itertools.product(surface.rates[:: len(surface.rates) - 1], surface.sizes)
    return min(corners, key=lambda corner: surface.curves[corner][-1].score)


SEARCHES: dict[str, Search] = {
    "random": drawn,
    "TPE": plain_tpe,
    "ASHA": plain_asha,
    "ours": ours(_default),
    "ours, from a poor recipe": ours(_corner),
    "ours, with TPE": ours(_default, "tpe"),
}


def shares(surface: Surface, search: Search, seeds: Sequence[int]) -> list[float]:
    """The work of `search` as a share of the grid's, by seed; infinite where it never got there."""
    found = []
    for seed in seeds:
        meter = Meter(surface.best - WITHIN)
        try:
            search(surface, meter, seed)
        except Reached:
            found.append(meter.work / surface.work)
        else:
            found.append(math.inf)
    return found


def play(surface: Surface, seeds: Sequence[int]) -> dict[str, list[float]]:
    """The shares of all searches, by name and seed."""
    return {name: shares(surface, search, seeds) for name, search in SEARCHES.items()}


def table(surface: Surface, played: dict[str, list[float]]) -> Iterator[str]:
    """In Markdown."""
    yield f"Best of the grid's {len(surface.curves)} runs: {surface.best:.4f}."
    yield ""
    yield "| search | work, median | quartiles | worst | never |"
    yield "|---|---|---|---|---|"
    for name, of_seeds in played.items():
        found = sorted(of_seeds)
        quarters = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
        lost = sum(math.isinf(share) for share in found)
        yield (
            f"| {name} | {statistics.median(found):.1%} | {quarters[0]:.1%} to {quarters[2]:.1%} "
            f"| {found[-1]:.1%} | {lost} of {len(found)} |"
        )


def live(run: Path, surface: Surface) -> str:
    """What share of the grid's work a real search took until it was within half a point."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    sign = -1 if result["lower_is_better"] else 1
    work = 0
    for trial in result["trials"]:
        before = 0
        for tokens, value in trial["curve"]:
            work, before = work + tokens - before, tokens
            if sign * value >= surface.best - WITHIN:
                share = f"{work / surface.work:.1%} of the grid's work"
                return f"{run}: {share}, at trial {trial['number']}"
    return f"{run}: not within half a point of the grid's best, after {work / surface.work:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["record", "play", "live"])
    parser.add_argument("runs", nargs="*", type=Path, help="directories of searches")
    parser.add_argument("--surface", type=Path, default=SURFACE, help="its directory")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the searches that are played")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where `play` stores its shares")
    parser.add_argument("--seed", type=int, default=0, help="of the surface that is recorded")
    options = parser.parse_args()
    if options.what == "record":
        record(options.seed, options.surface / f"seed-{options.seed}.csv", os.cpu_count() or 1)
    elif options.what == "play":
        surface = Surface.read(options.surface)
        played = play(surface, range(options.seeds))
        for line in table(surface, played):
            print(line)
        known = {
            name: [share if math.isfinite(share) else None for share in found]
            for name, found in played.items()
        }
        told = {"best": surface.best, "looks": surface.looks, "shares": known}
        options.out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    elif not options.runs:
        parser.error("name the directory of a search")
    else:
        for run in options.runs:
            print(live(run, Surface.read(options.surface)))


if __name__ == "__main__":
    main()
