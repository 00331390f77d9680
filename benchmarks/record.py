"""Record a surface: every learning rate with every batch size, trained to its end.

Each point is one run of the one trainer in a process of one thread, as many at once as there are
cores, evaluated as often as a search would. A finished point is a few rows of the table, so an
interrupted recording continues where it was.
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

from surface import read_curves

from cluster import spec
from cluster.spec import ClusterSpec
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.data import prepare
from trainers.runtime import fit
from trainers.tracking.run_directory import RunDirectory
from tuning.algorithms.eval_schedule import EvalSchedule
from tuning.space.scaling_rule import RATE, SIZE

RATES = (1e-5, 2.5e-5, 6.3e-5, 1.6e-4, 4e-4, 1e-3, 2.5e-3)
SIZES = (8, 16, 32, 64)
# Fewer rows to train on, and 2,500 to validate on: with 800, chance moves a score by over a point.
RECIPE, SPLIT = "reviews", ("data.validation=0.3", "data.test=0.05")
COLUMNS = ("learning_rate", "global_size", "tokens", "score")

Point = tuple[float, int]


@dataclass(frozen=True)
class Grid:
    """Every rate with every size."""

    rates: Sequence[float] = RATES
    sizes: Sequence[int] = SIZES

    def points(self) -> list[Point]:
        """Return all points, in order."""
        return list(itertools.product(self.rates, self.sizes))


Row = tuple[float, int, int, float]


def record_surface(seed: int, table: Path, processes: int, grid: Grid = Grid()) -> None:
    """Append the curves of missing points to `table`, one after another."""
    done: set[Point] = set()
    if table.is_file():
        done = set(read_curves(table))
    else:
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(",".join(COLUMNS) + "\n")
    missing = [point for point in grid.points() if point not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    prepare.prepare_dataset(
        _load_recipe(RECIPE, seed, *grid.points()[0]), _load_cluster().cache_dir
    )  # once, for all of them
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, maxtasksperchild=1) as pool:
        for rows in pool.imap_unordered(
            _train_point, [(RECIPE, seed, *point) for point in missing]
        ):
            with table.open("a", newline="") as file:
                csv.writer(file).writerows(rows)
            print(f"seed {seed}: {rows[-1]}", flush=True)


def _train_point(point: tuple[str, int, float, int]) -> list[Row]:
    """Train one point, (recipe, seed, rate, size), and return its curve."""
    name, seed, rate, size = point
    cluster, directory = _load_cluster(), Path(tempfile.mkdtemp(prefix="bertha-surface-"))
    try:
        recipe = _load_recipe(name, seed, rate, size)
        prepared = prepare.prepare_dataset(recipe, cluster.cache_dir)
        lengths = prepared.train.samples.lengths
        schedule = EvalSchedule.for_recipe(
            recipe, len(lengths), int(lengths.sum()), len(prepared.validation)
        )
        fit.fit(
            schedule.apply_to(recipe),
            cluster,
            directory / "run",
            write_bundle=False,
            report=_ignore_report,
        )
        return list(_read_curve(RunDirectory(directory / "run"), rate, size, recipe.metric))
    finally:
        shutil.rmtree(directory)


def _load_recipe(name: str, seed: int, rate: float, size: int) -> Recipe:
    return recipes.load_recipe(name, [*SPLIT, f"seed={seed}", f"{RATE}={rate}", f"{SIZE}={size}"])


def _load_cluster() -> ClusterSpec:
    """Return the local cluster without workers: train in this process."""
    return spec.load_cluster_spec("local").with_workers(0)


def _ignore_report(*_: object, **__: object) -> None:
    """Report to nobody."""


def _read_curve(run: RunDirectory, rate: float, size: int, metric: str) -> Iterator[Row]:
    for row in run.metric_rows("evaluation"):
        yield rate, size, row["tokens"], round(row["metrics"][metric], 6)
