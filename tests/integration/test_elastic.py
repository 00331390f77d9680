"""Workers leave, join and change their layout: the losses stay those of the undisturbed run."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as autoscaling

from cluster import spec
from cluster.costmodel.layout import Layout, LayoutError
from cluster.costmodel.model_shape import ModelShape
from cluster.launch import spot_notice
from cluster.spec import ClusterMetadata, ClusterSpec
from tests.support.worker_processes import run_workers, worker_config
from trainers.config import recipe as recipes
from trainers.planning.elastic import ElasticPlanner
from trainers.runtime import fit
from trainers.tracking.run_directory import RunDirectory, RunError

SETTINGS = [
    "batch.global_size=13",
    "batch.max_length=32",
    "batch.token_budget=96",
    "optimizer.learning_rate=2e-3",
    "model.attention_dropout=0.1",
    "stopping.max_steps=14",
    "stopping.patience=null",
    "evaluation.every_steps=4",
    "checkpoints.every_steps=2",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, corpus: Path) -> list[str]:
    return [f"model.name={tiny_bert}", f"data.source={corpus}", *SETTINGS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def here(place: Path) -> ClusterSpec:
    """This process alone."""
    return ClusterSpec(
        "here", "local", 1, ClusterMetadata(devices_per_node=0, cache=str(place / "cache"))
    )


@pytest.fixture(scope="module")
def undisturbed(place: Path, settings: list[str], here: ClusterSpec) -> list[float]:
    fit.fit(recipes.load_recipe("csv", settings), here, place / "undisturbed")
    return losses(RunDirectory(place / "undisturbed"))


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.metric_rows("step")]


class TestSizes:
    """Which numbers of workers a run may have."""

    SHAPE = ModelShape(32, 2, 4, 64, 100, 64, 2, 32, "classification", 2)

    @staticmethod
    def elastic(most: int, least: int | None) -> ElasticPlanner:
        metadata = ClusterMetadata(devices_per_node=most, min_workers=least, device_memory_gib=1)
        return ElasticPlanner.from_cluster(TestSizes.SHAPE, ClusterSpec("c", "local", 1, metadata))

    def test_auto_suits_any_number(self, settings: list[str]) -> None:
        elastic, recipe = self.elastic(6, 1), recipes.load_recipe("csv", settings)
        elastic.validate_sizes(recipe)
        for number in range(1, 7):
            assert elastic.resolve_layout(recipe, number).layout.world_size == number

    def test_copies_of_shards_suit_some_and_the_others_are_refused(
        self, settings: list[str]
    ) -> None:
        recipe = recipes.load_recipe("csv", [*settings, "layout.tp=2"])
        with pytest.raises(LayoutError, match=r"from 2 to 4, but .*\(tp 2\) is possible with 2, 4"):
            self.elastic(4, 2).validate_sizes(recipe)
        self.elastic(4, 4).validate_sizes(recipe)
        with pytest.raises(LayoutError, match="tp = 2 does not divide the 5 devices of a node"):
            self.elastic(5, 2).validate_sizes(recipe)
        fixed = recipes.load_recipe("csv", [*settings, "layout.dp_replicate=4"])
        with pytest.raises(LayoutError, match=r"is possible with 4; set layout: auto"):
            self.elastic(4, 3).validate_sizes(fixed)

    def test_memory_of_the_driver_decides_everywhere(self) -> None:
        metadata = ClusterMetadata(devices_per_node=2, min_workers=1)
        elastic = ElasticPlanner.from_cluster(self.SHAPE, ClusterSpec("c", "local", 1, metadata))
        assert elastic.cluster.metadata.device_memory_gib is not None


@pytest.mark.ray
def test_resumed_under_another_layout_it_ends_with_the_same_losses(
    settings: list[str], here: ClusterSpec, undisturbed: list[float], tmp_path: Path
) -> None:
    """TP 2, then FSDP 4, then copies on 3, then one process, each from where the last one left."""
    run, cache = RunDirectory(tmp_path / "run"), here.cache_dir
    for degrees in ({"tp": 2}, {"dp_shard": 4}, {"dp_replicate": 3}):
        layout = [f"layout.{name}={degree}" for name, degree in degrees.items()]
        recipe = recipes.load_recipe("csv", [*settings, *layout])
        run.acquire(recipe, resume=True)
        assignment = worker_config(recipe, run.path, cache, **degrees)
        run_workers([(assignment, 1)], assignment.layout.world_size)
        assert run.read_record()["parity"]["layout"] == assignment.layout.model_dump(mode="json")
    with pytest.raises(RunError, match="differs in seed"):
        fit.fit(recipes.load_recipe("csv", [*settings, "seed=1"]), here, run.path, resume=True)
    fit.fit(recipes.load_recipe("csv", settings), here, run.path, resume=True)
    assert losses(run) == pytest.approx(undisturbed, abs=2e-5)
    # Each crew left at its first evaluation, whose step was saved before it was told.
    told = [(row["step"], row["workers"], row["lost_steps"]) for row in run.metric_rows("start")]
    assert told == [(0, 2, 0), (4, 4, 0), (8, 3, 0), (12, 1, 0)]


class QuickCoordinator(autoscaling._AutoscalingCoordinatorActor):  # type: ignore[misc]
    """Ray's own, which counts nodes every 20 seconds, and every 2 here."""

    TICK_INTERVAL_S = 2


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster on this machine whose one node has room for one worker."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    monkeypatch.setattr(autoscaling, "_AutoscalingCoordinatorActor", QuickCoordinator)
    autoscaling.get_or_create_autoscaling_coordinator()  # whoever asks for one later gets this one
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.ray
def test_a_node_joins_and_leaves_and_the_losses_stay(
    settings: list[str],
    here: ClusterSpec,
    nodes: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One worker, two once Ray has seen the new node, and one when it is cut off, after notice."""
    # So long Ray waits for the workers that it counted last, of which one is gone.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    # Long enough for Ray to see that nodes come and go.
    long = ["stopping.max_steps=450", "stopping.epochs=100", "evaluation.every_steps=450"]
    saved = ["batch.global_size=30", "checkpoints.every_steps=25"]
    recipe = recipes.load_recipe("csv", [*settings, *long, *saved])
    fit.fit(recipe, here, tmp_path / "alone")
    path = tmp_path / "cluster.yaml"
    provider = {"type": "local", "head_ip": "a", "worker_ips": ["b"]}
    metadata = {
        "min_workers": 1,
        "cache": str(here.cache_dir),
        "max_failures": 5,
        "resize_seconds": 3,
    }
    path.write_text(yaml.safe_dump({"provider": provider, "metadata": metadata}))
    run = RunDirectory(tmp_path / "run")

    def sizes() -> list[int]:
        return [row["workers"] for row in run.metric_rows("start")]

    with ThreadPoolExecutor(1) as beside:
        fitting = beside.submit(fit.fit, recipe, spec.load_cluster_spec(path), run.path)
        until(lambda: len(losses(run)) >= 5, fitting)
        joined = nodes.add_node(num_cpus=1)
        until(lambda: sizes() == [1, 2], fitting)
        assert not list(run.metric_rows("notice"))
        (head,) = (node for node in ray.nodes() if "node:__internal_head__" in node["Resources"])
        (second,) = (node["NodeID"] for node in ray.nodes() if node["NodeID"] != head["NodeID"])
        spot_notice.drain_node(nodes.address, second, "it will be taken away", 10)
        until(lambda: bool(list(run.metric_rows("notice"))), fitting)
        nodes.remove_node(joined, allow_graceful=False)
        fitting.result()
    assert losses(run) == pytest.approx(losses(RunDirectory(tmp_path / "alone")), abs=2e-5)
    assert sizes() == [1, 2, 1]
    *_, last = run.metric_rows("start")
    (notice, *_) = run.metric_rows("notice")
    assert last["step"] >= notice["step"] and last["lost_steps"] <= 25
    assert run.read_record()["layout"] == Layout(dp_replicate=1).model_dump(mode="json")
    said = capsys.readouterr().out
    assert f"resuming from step {last['step']} with 1 worker" in said
    assert f"about to be reclaimed; step {notice['step']} is saved" in said


def until(happened: Callable[[], bool], fitting: Future[Any]) -> None:
    """Wait for something that happens while a run goes on."""
    while not happened():
        assert not fitting.done(), fitting.exception() or "it had not happened when the run ended"
        time.sleep(0.02)
