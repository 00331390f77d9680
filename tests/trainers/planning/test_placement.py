"""Where a run trains: in this process if starting workers would take longer than they save."""

from typing import Any

import numpy as np
import pytest

from cluster import spec
from cluster.costmodel.model_shape import ModelShape
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.planning.placement import Placement, place_run

MINILM = ModelShape(384, 6, 12, 1536, 30522, 512, 2, 384, "classification", 4)
BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 4)


def recipe_of(**settings: Any) -> Recipe:
    return recipes.parse_recipe(
        {
            "model": {"name": "tiny"},
            "data": {"source": "x.csv"},
            "batch": {"global_size": 16},
            "stopping": {"epochs": 10},
            **settings,
        }
    )


def here(**metadata: Any) -> ClusterSpec:
    given = {"devices_per_node": 2, "small_runs_in_process": True, **metadata}
    return ClusterSpec("here", "local", 1, ClusterMetadata(**given))


def place(
    rows: int, cluster: ClusterSpec, shape: ModelShape = MINILM, **settings: Any
) -> Placement:
    return place_run(recipe_of(**settings), shape, cluster, np.full(rows, 32))


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_some_hundred_rows_train_in_this_process_and_say_so() -> None:
    placement = place(240, here())
    assert placement.cluster.num_workers == 0
    assert placement.reason.startswith("training in this process: 240 rows, 150 steps, about ")
    assert "s as on cores of 60 GFLOP/s, which is assumed; " in placement.reason
    assert placement.reason.endswith("; starting Ray, 30s, would cost more than it gains")


def test_a_longer_run_keeps_its_workers() -> None:
    for rows, shape in ((25_000, MINILM), (2_000, BASE)):
        assert place(rows, here(), shape) == Placement(here())
    steps = {"stopping": {"epochs": 10, "max_steps": 20}}
    assert place(25_000, here(), **steps).cluster.num_workers == 0


def test_a_single_worker_is_kept_for_its_restarts_alone() -> None:
    one = here(devices_per_node=1)
    assert place(240, one).cluster.num_workers == 0
    assert place(2_400, one).cluster.num_workers == 1


def test_devices_that_one_process_cannot_use_together_are_worth_their_start() -> None:
    gpus = {"accelerator": "cuda", "accelerator_name": "A100-SXM4-80GB"}
    long = recipe_of(batch={"global_size": 256, "max_length": 512})
    placement = place_run(long, BASE, here(**gpus, devices_per_node=8), np.full(12_800, 400))
    assert placement.cluster.num_workers == 8
    assert place(240, here(**gpus, devices_per_node=8), BASE).cluster.num_workers == 0


def test_more_rows_than_lengths_count() -> None:
    sample = np.full(240, 32)
    assert place_run(recipe_of(), MINILM, here(), sample, 25_000).cluster.num_workers == 2


def test_a_linear_model_needs_no_workers() -> None:
    linear = ModelShape.for_linear(8, 1)
    recipe = recipe_of(model={"name": "linear"}, task="regression")
    assert place_run(recipe, linear, here(), np.full(5_000, 8)).cluster.num_workers == 0


@pytest.mark.parametrize(
    "metadata",
    [
        {"small_runs_in_process": False},
        {"min_workers": 1},
        {"devices_per_node": 0},
        {"device_memory_gib": 0.01},
    ],
    ids=str,
)
def test_workers_are_kept_where_they_are_asked_for_or_needed(metadata: dict[str, Any]) -> None:
    assert place(240, here(**metadata)) == Placement(here(**metadata))


def test_a_layout_of_the_recipe_keeps_its_workers() -> None:
    assert place(240, here(), layout={"tp": 2}).cluster.num_workers == 2


def test_a_job_on_a_cluster_keeps_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert place(240, here()) == Placement(here())
    monkeypatch.delenv("RAY_ADDRESS")
    rented = ClusterSpec("far", "aws", 1, ClusterMetadata(small_runs_in_process=True))
    assert place(240, rented) == Placement(rented)


def test_of_the_shipped_cluster_files_this_machine_alone_may_do_without_workers() -> None:
    files = {path.stem for path in spec.SHIPPED_DIR.glob("*.yaml")}
    small = {name for name in files if spec.load_cluster_spec(name).metadata.small_runs_in_process}
    assert small == {"local"}
