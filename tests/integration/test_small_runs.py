"""Runs that are shorter than starting Ray train in the process that was asked for them."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from cluster import spec
from cluster.spec import ClusterSpec
from tests.support.results import without_place
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.config.recipe import Recipe
from trainers.models import card
from trainers.runtime import fit
from trainers.runtime.worker import WorkerError
from trainers.tracking.run_directory import RunDirectory, RunError
from trainers.training.optimizer import learning_rate_at

SETTINGS = [
    "batch.global_size=16",
    "batch.max_length=32",
    "optimizer.learning_rate=2e-3",
    "stopping.epochs=2",
    "stopping.patience=null",
    "checkpoints.every_steps=5",
    "precision=fp32",
    "baseline=false",
    "linear_probe=false",
]


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, corpus: Path) -> list[str]:
    return [f"model.name={tiny_bert}", f"data.source={corpus}", *SETTINGS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


def cluster_file(place: Path, small_runs_in_process: bool) -> Path:
    """This machine with two workers, of which a small run may do without."""
    path = place / f"cluster-{small_runs_in_process}.yaml"
    metadata = {"devices_per_node": 2, "cache": str(place / "cache")}
    metadata["small_runs_in_process"] = small_runs_in_process
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    return path


def here(place: Path, small_runs_in_process: bool = True) -> ClusterSpec:
    return spec.load_cluster_spec(cluster_file(place, small_runs_in_process))


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunDirectory(run).metric_rows("step")]


class Interruption(Exception):
    """Something that nobody has foreseen."""


def interrupt(metrics: Mapping[str, float]) -> None:
    raise Interruption


@pytest.mark.slow
def test_a_small_run_says_its_waits_and_needs_no_ray(
    place: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["csv", *settings, "--cluster", str(cluster_file(place, True)), "--run", str(run)]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [f"run: {run}", "loading torch and Transformers ..."]
    (reason,) = [line for line in said if line.startswith("training in this process: ")]
    assert said.index("loading the model ...") == said.index(reason) + 1
    assert "evaluating the test rows and writing the bundle ..." in said
    assert not any("Ray ..." in line or "workers" in line for line in said)
    ray = sys.modules.get("ray")  # which another test may have imported
    assert ray is None or not ray.is_initialized()
    assert RunDirectory(run).read_record()["workers"] == 1 and not (run / "ray").exists()


@pytest.mark.slow
def test_what_nobody_foresaw_says_how_to_go_on_and_the_run_goes_on(
    place: Path, settings: list[str], tmp_path: Path
) -> None:
    recipe = recipes.load_recipe("csv", settings)
    whole = fit.fit(recipe, here(place), tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(WorkerError) as raised:
        fit.fit(recipe, here(place), run, report=interrupt)
    where = f"its traceback is in {run}/traceback.txt"
    assert str(raised.value) == (
        f"{run}: Interruption; {where}. What is saved is kept: go on with --resume"
    )
    assert isinstance(raised.value.__cause__, Interruption)
    assert "in interrupt\n    raise Interruption" in (run / "traceback.txt").read_text()
    assert not (run / "result.json").exists()
    outcome = fit.fit(recipe, here(place), run, resume=True)
    assert without_place(outcome.result) == without_place(whole.result)
    assert losses(run) == losses(tmp_path / "whole")
    assert not (run / "traceback.txt").exists()


@pytest.mark.slow
def test_a_run_that_has_ended_trains_longer(
    place: Path, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cluster = tmp_path / "run", here(place)
    short = fit.fit(recipes.load_recipe("csv", settings), cluster, run).result
    recipe = recipes.load_recipe("csv", [*settings, "stopping.epochs=4"])
    capsys.readouterr()
    longer = fit.fit(recipe, cluster, run, resume=True).result
    assert "longer    stopping.epochs 2 -> 4: training goes on" in capsys.readouterr().out
    assert longer["steps"] == 2 * short["steps"]
    rows = list(RunDirectory(run).metric_rows("step"))
    assert [row["step"] for row in rows] == list(range(1, longer["steps"] + 1))
    half = short["steps"]
    for row in rows[half:]:
        expected = learning_rate_at(recipe, row["step"] - 1, longer["steps"])
        assert row["learning_rate"] == pytest.approx(expected)
    assert rows[half - 1]["learning_rate"] < rows[half]["learning_rate"]
    assert RunDirectory(run).read_record()["longer"] == [
        {"from_step": half, "settings": {"stopping.epochs": [2, 4]}}
    ]
    assert card.read_card(run / "bundle").recipe["stopping"]["epochs"] == 4
    again = fit.fit(recipe, cluster, run, resume=True)
    assert again.result == longer and len(losses(run)) == longer["steps"]
    for words, said in [([], "epochs = 2, but the run has 4"), (["seed=1"], "differs in seed")]:
        with pytest.raises(RunError, match=said):
            fit.fit(recipes.load_recipe("csv", [*settings, *words]), cluster, run, resume=True)


@pytest.mark.multiprocess
def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    place: Path, settings: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["csv", *settings, "stopping.epochs=2000", "--run", str(run)]
    words += ["--cluster", str(cluster_file(place, True))]
    command = [sys.executable, "-m", "trainers", *words]
    # A shell's job in the background ignores SIGINT, and so would this child of it.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=listen
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while len(losses(run)) < 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    line, way_out = said.decode().splitlines()
    assert line == f"interrupted: {run}: what is saved is kept; go on with"
    again = shlex.split(way_out)
    where, cluster = words[-4:-2], words[-2:]
    assert again == ["python", "-m", "trainers", *words[:-4], *cluster, *where, "--resume"]
    assert RunDirectory(run).read_result() is None


@pytest.mark.slow
def test_a_tracker_sees_one_run_through_an_interruption(
    place: Path, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tmp_path / "server"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    recipe: Recipe = recipes.load_recipe("csv", [*settings, "tracking=[mlflow]"])
    run = tmp_path / "run"
    with pytest.raises(WorkerError, match="Interruption"):
        fit.fit(recipe, here(place), run, report=interrupt)
    outcome = fit.fit(recipe, here(place), run, resume=True)
    client = MlflowClient(tracking_uri=server.as_uri())
    experiment = client.get_experiment_by_name("bertha")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.metrics["test/f1"] == pytest.approx(outcome.result["test"]["f1"])
    assert tracked.data.params["optimizer.learning_rate"] == "0.002"
    assert tracked.data.tags["bertha.bundle"] == f"{run}/bundle"
    history = client.get_metric_history(tracked.info.run_id, "train/loss")
    assert {point.step for point in history} == set(range(1, outcome.result["steps"] + 1))
    assert not (run / "tensorboard").exists()


@pytest.fixture
def ray_ends() -> Iterator[None]:
    """Ends the Ray that a run has started, which would else go on for the tests that follow."""
    yield
    import ray

    ray.shutdown()


@pytest.mark.ray
def test_with_workers_the_losses_are_the_same(
    place: Path,
    settings: list[str],
    tmp_path: Path,
    ray_ends: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = recipes.load_recipe("csv", settings)
    fit.fit(recipe, here(place), tmp_path / "here")
    assert "Ray ..." not in capsys.readouterr().out
    outcome = fit.fit(recipe, here(place, False), tmp_path / "workers")
    said = capsys.readouterr().out
    assert "starting Ray ..." in said and "starting 2 workers ..." in said
    assert RunDirectory(tmp_path / "workers").read_record()["workers"] == 2
    assert losses(tmp_path / "workers") == pytest.approx(losses(tmp_path / "here"), abs=2e-5)
    assert outcome.result["steps"] == len(losses(tmp_path / "here"))
