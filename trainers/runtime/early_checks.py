"""What can be refused before data are read and before anything heavy is imported.

The run's directory, its recipe, the sources that a job names, the layout and the trackers. Imports
neither torch nor Ray.
"""

import difflib
import os
import tempfile
from pathlib import Path

from cluster.costmodel.layout import Layout, check_layout
from cluster.costmodel.model_shape import ModelShape
from cluster.planning.this_machine import read_gpu_models
from cluster.spec import ClusterSpec
from trainers.config.recipe import AUTO, Recipe
from trainers.planning.model_sizes import known_shape
from trainers.runtime.job_sources import check_job_sources
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.tracking.sinks.trackers import check_trackers

MAX_SHOWN = 3  # runs
ANY_BATCH = 2**31  # in place of a batch size that the data decide: it suits every layout


def open_run(address: Path | str, cluster: ClusterSpec) -> RunDirectory:
    """Open a run directory. Raises RunError or StoreError where this machine cannot write to it."""
    directory = RunDirectory.from_address(address, cluster.cache_dir)
    _check_writable(directory)
    directory.check_access()
    return directory


def check_run(recipe: Recipe, cluster: ClusterSpec, directory: RunDirectory, resume: bool) -> None:
    """Check that `recipe` may begin in `directory`, or be resumed, on `cluster`. Write nothing.

    Raises RunError for the directory, and what `check_settings` raises.
    """
    check_settings(recipe, cluster)
    directory.check_recipe(recipe.with_absolute_paths(), resume)
    if resume and not directory.recipe_path.is_file():
        raise RunError(
            f"{directory.address}: no run to resume is there{_near_runs(directory)}; name the "
            "directory of a run with --run, or leave --resume out to begin one"
        )


def check_settings(recipe: Recipe, cluster: ClusterSpec) -> None:
    """Check what `recipe` asks of `cluster` and of this installation.

    Raises DataError for a source that a job may not read, LayoutError for a layout that cannot run,
    TrackerError for a tracker that is not installed.
    """
    check_job_sources(recipe, cluster)
    _check_layout(recipe, cluster)
    check_trackers(recipe.tracking)


def _near_runs(directory: RunDirectory) -> str:
    """Return `; did you mean X?` for the runs beside a directory that holds none."""
    if directory.home:
        return ""
    runs = {path.parent.name: path.parent for path in directory.path.parent.glob("*/recipe.yaml")}
    close = difflib.get_close_matches(directory.path.name, runs, n=1, cutoff=0.5)
    newest = sorted(runs, key=lambda name: -runs[name].stat().st_mtime)[:MAX_SHOWN]
    if close:
        return f"; did you mean {runs[close[0]]}?"
    return f"; beside it {'are' if len(newest) > 1 else 'is'} {', '.join(newest)}" if newest else ""


def _check_layout(recipe: Recipe, cluster: ClusterSpec) -> None:
    """Raise LayoutError for a layout of the recipe that cannot run on `cluster`.

    A model of unknown sizes, an elastic cluster and GPUs that are still to be counted are left to
    the run, which checks all again once the data and the model are there.
    """
    shape = _find_shape(recipe)
    is_counted = cluster.metadata.accelerator != "auto" or not read_gpu_models()
    if (
        not is_counted
        or shape is None
        or cluster.is_elastic
        or not isinstance(recipe.layout, Layout)
    ):
        return
    size = recipe.batch.global_size
    check_layout(
        recipe.layout,
        shape,
        max(1, cluster.num_workers),
        max(1, cluster.metadata.devices_per_node),
        ANY_BATCH if size == AUTO else int(size),
    )


def _find_shape(recipe: Recipe) -> ModelShape | None:
    """Return the sizes of the recipe's model where they are known without loading it."""
    if recipe.model.name == "linear":
        return ModelShape.for_linear(1, 1)
    try:
        return known_shape(recipe)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # an unknown or damaged model: loading it says what is wrong


def _check_writable(directory: RunDirectory) -> None:
    """Raise RunError where the directory on this machine cannot be made or written."""
    place = directory.path
    while not os.path.lexists(place):
        place = place.parent
    try:  # a file is the only proof: mode bits say little of shares, quotas and root
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        way_out = "metadata.cache" if directory.home else "--run"
        raise RunError(
            f"{directory.address}: cannot be written: {place}: {error.strerror or error}; name "
            f"another directory with {way_out}"
        ) from None
