"""Records a surface: every learning rate with every batch size, trained to its end.

Each point is one run of the one trainer in a process of one thread, as many at once as there are
cores, looked at as often as a search would look. A point that is done is a few rows of the table,
so a recording that was ended goes on where it was. Knows no search.
"""

import csv
import itertools
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from surface import curves_of

from cluster import spec
from cluster.spec import ClusterSpec
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.runtime import fit
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms.eval_schedule import Pace
from tuning.space.scaling_rule import RATE, SIZE

RATES = (1e-5, 2.5e-5, 6.3e-5, 1.6e-4, 4e-4, 1e-3, 2.5e-3)
SIZES = (8, 16, 32, 64)
# Fewer rows to train on, and 2,500 to judge by: luck moves a score of 800 by more than a point.
RECIPE, SPLIT = "reviews", ("data.validation=0.3", "data.test=0.05")
COLUMNS = ("learning_rate", "global_size", "tokens", "score")

Point = tuple[float, int]


@dataclass(frozen=True)
class Grid:
    """Every rate with every size."""

    rates: Sequence[float] = RATES
    sizes: Sequence[int] = SIZES

    def points(self) -> list[Point]:
        """In their order."""
        return list(itertools.product(self.rates, self.sizes))


Row = tuple[float, int, int, float]


def record(seed: int, table: Path, processes: int, grid: Grid = Grid()) -> None:
    """Add to `table` the curves of the points that it lacks, one after another."""
    done: set[Point] = set()
    if table.is_file():
        done = set(curves_of(table))
    else:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(",".join(COLUMNS) + "\n")
    left = [point for point in grid.points() if point not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    prepare.prepare(
        _recipe(RECIPE, seed, *grid.points()[0]), _cluster().cache
    )  # once, for all of them
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=1) as pool:
        for rows in pool.imap_unordered(_rows, [(RECIPE, seed, *point) for point in left]):
            with table.open("a", newline="") as file:
                csv.writer(file).writerows(rows)
            print(f"seed {seed}: {rows[-1]}", flush=True)


def _rows(asked: tuple[str, int, float, int]) -> list[Row]:
    """The curve of one point."""
    name, seed, rate, size = asked
    cluster, place = _cluster(), Path(tempfile.mkdtemp(prefix="bertha-surface-"))
    try:
        recipe = _recipe(name, seed, rate, size)
        prepared = prepare.prepare(recipe, cluster.cache)
        lengths = prepared.train.samples.lengths
        pace = Pace.of(recipe, len(lengths), int(lengths.sum()), len(prepared.validation))
        fit.fit(pace.paced(recipe), cluster, place / "run", judged=False, report=_nobody)
        return list(_curve(RunDirectory(place / "run"), rate, size, recipe.metric))
    finally:
        shutil.rmtree(place)


def _recipe(name: str, seed: int, rate: float, size: int) -> Recipe:
    return recipes.load(name, [*SPLIT, f"seed={seed}", f"{RATE}={rate}", f"{SIZE}={size}"])


def _cluster() -> ClusterSpec:
    """This process, and no worker beside it."""
    return spec.load("local").at(0)


def _nobody(*_: object, **__: object) -> None:
    """Is told how a run is."""


def _curve(run: RunDirectory, rate: float, size: int, metric: str) -> Iterator[Row]:
    for row in run.rows("evaluation"):
        yield rate, size, row["tokens"], round(row["metrics"][metric], 6)
