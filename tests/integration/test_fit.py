"""Runs through the front door: Ray Train, kills, resumption, bundles."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray
import yaml
from transformers import pipeline

from cluster import spec
from cluster.costmodel.layout import LayoutError
from trainers.__main__ import main
from trainers.config import recipe as recipes
from trainers.models import card
from trainers.runtime import fit
from trainers.runtime.fit import Outcome
from trainers.runtime.worker import WorkerError
from trainers.tracking.run_directory import RunDirectory, RunError

SETTINGS = [
    "batch.global_size=16",
    "batch.max_length=32",
    "batch.token_budget=128",
    "optimizer.learning_rate=2e-3",
    "stopping.epochs=5",
    "stopping.patience=null",
    "evaluation.every_steps=15",
    "checkpoints.every_steps=5",
    "precision=fp32",
]

# A process that is killed with its second checkpoint half written.
DIE_WRITING = """
import os, signal, sys
from trainers.storage import safetensors
whole, calls = safetensors.write_tensors, 0
def half(path, like, tensors):
    global calls
    calls += 1
    whole(path, like, tensors)
    if calls == 2:
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)
safetensors.write_tensors = half
from trainers.__main__ import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def settings(tiny_bert: Path, corpus: Path) -> list[str]:
    return [f"model.name={tiny_bert}", f"data.source={corpus}", *SETTINGS]


def cluster_file(directory: Path, devices: int) -> Path:
    """This machine with `devices` workers; 0 trains in the calling process."""
    path = directory / f"cluster-{devices}.yaml"
    metadata = {"devices_per_node": devices, "cache": str(directory / "cache"), "max_failures": 2}
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def undisturbed(place: Path, settings: list[str]) -> tuple[Outcome, RunDirectory]:
    """A run in this process from start to end."""
    recipe = recipes.load_recipe("csv", settings)
    cluster = spec.load_cluster_spec(cluster_file(place, 0))
    run = place / "undisturbed"
    return fit.fit(recipe, cluster, run), RunDirectory(run)


def losses(run: RunDirectory) -> list[float]:
    return [row["loss"] for row in run.metric_rows("step")]


def test_the_run_directory_is_complete(undisturbed: tuple[Outcome, RunDirectory]) -> None:
    outcome, run = undisturbed
    names = {path.name for path in run.path.iterdir()}
    assert {"recipe.yaml", "record.json", "metrics.jsonl", "tensorboard", "plots"} <= names
    assert {"checkpoints", "bundle", "result.json"} <= names
    assert {path.name for path in (run.path / "plots").iterdir()} == {
        "loss.png",
        "f1.png",
        "throughput.png",
        "confusion.png",
        "reliability.png",
    }
    record = json.loads((run.path / "record.json").read_text())
    assert record["data"] and record["revision"] and record["environment"]["torch"]
    assert record["accelerator"] == "cpu"
    rows = list(run.metric_rows("step"))
    assert [row["step"] for row in rows] == list(range(1, outcome.result["steps"] + 1))
    assert all(row["padding_share"] == 0 and row["tokens_per_second"] > 0 for row in rows)
    assert all(row["tflops_per_device"] > 0 and "mfu" not in row for row in rows)


def test_the_bundle_is_the_best_checkpoint_and_loads_in_transformers(
    undisturbed: tuple[Outcome, RunDirectory],
) -> None:
    outcome, run = undisturbed
    best = max(run.metric_rows("evaluation"), key=lambda row: row["metrics"]["f1"])
    assert outcome.result["best_step"] == best["step"]
    held = card.read_card(run.bundle_path)
    assert held.metrics == outcome.result["test"]
    assert held.metrics["accuracy"] > 0.8
    classify = pipeline("text-classification", model=str(run.bundle_path), device="cpu")
    assert classify("a lovely warm film")[0]["label"] == "positive"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_tampered_bundle_is_refused_by_name(
    undisturbed: tuple[Outcome, RunDirectory], tmp_path: Path, name: str
) -> None:
    source = undisturbed[1].bundle_path
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    card.read_card(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(card.BundleError, match=f"{name} is not the file that was written"):
        card.read_card(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(card.BundleError, match=f"{name} is missing"):
        card.read_card(tmp_path)


def test_a_finished_run_is_not_repeated_and_not_overwritten(
    undisturbed: tuple[Outcome, RunDirectory], place: Path, settings: list[str]
) -> None:
    outcome, run = undisturbed
    recipe, cluster = (
        recipes.load_recipe("csv", settings),
        spec.load_cluster_spec(cluster_file(place, 0)),
    )
    assert fit.fit(recipe, cluster, run.path, resume=True).result == outcome.result
    with pytest.raises(RunError, match="holds a run already; resume it with --resume"):
        fit.fit(recipe, cluster, run.path)
    other = recipes.load_recipe("csv", [*settings, "seed=5"])
    with pytest.raises(RunError, match="its recipe differs in seed"):
        fit.fit(other, cluster, run.path, resume=True)


def start(
    place: Path, settings: list[str], run: Path, script: str | None = None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, *(["-c", script] if script else ["-m", "trainers"])]
    arguments = ["csv", *settings, "--cluster", str(cluster_file(place, 0)), "--run", str(run)]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)


def resumed(place: Path, settings: list[str], run: Path) -> RunDirectory:
    recipe, cluster = (
        recipes.load_recipe("csv", settings),
        spec.load_cluster_spec(cluster_file(place, 0)),
    )
    fit.fit(recipe, cluster, run, resume=True)
    return RunDirectory(run)


@pytest.mark.ray
def test_killed_in_mid_epoch_it_ends_with_the_same_losses(
    place: Path, settings: list[str], undisturbed: tuple[Outcome, RunDirectory], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(place, settings, run)
    deadline = time.monotonic() + 120
    while len(losses(RunDirectory(run))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (run / "result.json").exists()
    assert losses(resumed(place, settings, run)) == losses(undisturbed[1])


@pytest.mark.ray
def test_killed_while_writing_a_checkpoint_it_ends_with_the_same_losses(
    place: Path, settings: list[str], undisturbed: tuple[Outcome, RunDirectory], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(place, settings, run, DIE_WRITING)
    assert process.wait(120) == -signal.SIGKILL
    half = [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".step-")]
    assert half, "the kill left a half-written checkpoint"
    assert losses(resumed(place, settings, run)) == losses(undisturbed[1])


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_two_ray_workers_one_killed_end_with_the_losses_of_one_process(
    place: Path,
    settings: list[str],
    undisturbed: tuple[Outcome, RunDirectory],
    tmp_path: Path,
    ray_here: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, cluster = (
        recipes.load_recipe("csv", settings),
        spec.load_cluster_spec(cluster_file(place, 2)),
    )
    run = RunDirectory(tmp_path / "run")
    killed: list[int] = []
    over = threading.Event()

    def kill_a_worker() -> None:
        while len(losses(run)) < 8 and not over.wait(0.002):
            pass
        if not over.is_set():
            killed.append(next(run.metric_rows("start"))["pid"])
            os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    try:
        outcome = fit.fit(recipe, cluster, run.path)
    finally:
        over.set()
        killer.join()
    assert killed
    starts = list(run.metric_rows("start"))
    assert starts[-1]["step"] > 0 and starts[-1]["pid"] != killed[0]
    assert losses(run) == pytest.approx(losses(undisturbed[1]), abs=2e-5)
    assert outcome.result["test"]["confusion"] == undisturbed[0].result["test"]["confusion"]
    said = capsys.readouterr().out
    assert f"resuming from step {starts[-1]['step']} with 2 workers" in said
    assert "tokens/s" in said and "validation: " in said


@pytest.mark.ray
def test_two_ray_workers_whose_run_was_taken_over_stop_with_one_sentence(
    place: Path,
    settings: list[str],
    tmp_path: Path,
    ray_here: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = RunDirectory(tmp_path / "run")

    def take_over() -> None:
        while len(losses(run)) < 8:
            time.sleep(0.002)
        (run.path / "lease" / "holder").write_text("another machine's")

    taker = threading.Thread(target=take_over)
    taker.start()
    cluster = str(cluster_file(place, 2))
    status = main(["csv", *settings, "--cluster", cluster, "--run", str(run.path)])
    taker.join()
    assert status == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {run.path}: another process has taken it over from this")
    assert not run.error_path.exists() and not run.result_path.exists()
    assert [row["step"] for row in run.metric_rows("start")] == [0], "no worker began again"


@pytest.mark.ray
@pytest.mark.parametrize("degrees", [{"dp_shard": 2, "tp": 2}, {"pp": 2}], ids=str)
def test_four_ray_workers_in_a_hybrid_layout_end_with_the_losses_of_one_process(
    place: Path,
    settings: list[str],
    undisturbed: tuple[Outcome, RunDirectory],
    tmp_path: Path,
    ray_here: None,
    degrees: dict[str, int],
) -> None:
    layout = [f"layout.{name}={degree}" for name, degree in degrees.items()]
    recipe, cluster = recipes.load_recipe("csv", [*settings, *layout]), cluster_file(place, 4)
    run = RunDirectory(tmp_path / "run")
    outcome = fit.fit(recipe, spec.load_cluster_spec(cluster), run.path)
    assert losses(run) == pytest.approx(losses(undisturbed[1]), abs=2e-5)
    assert outcome.result["test"]["confusion"] == undisturbed[0].result["test"]["confusion"]
    record = run.read_record()
    assert record["workers"] == 4 and {**record["layout"], **degrees} == record["layout"]
    assert record["parity"]["grad_norm"] < 2e-5


@pytest.mark.ray
def test_a_number_of_workers_that_no_layout_suits_is_refused_before_anything_starts(
    place: Path, settings: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    metadata = {"devices_per_node": 4, "cache": str(place / "cache"), "min_workers": 3}
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    recipe = recipes.load_recipe("csv", [*settings, "layout.pp=2"])
    with pytest.raises(LayoutError, match=r"from 3 to 4, but .*\(pp 2\) is possible with 4; set"):
        fit.fit(recipe, spec.load_cluster_spec(path), tmp_path / "run")


@pytest.mark.ray
def test_what_nobody_foresaw_in_a_worker_is_one_sentence_and_a_file(
    place: Path,
    settings: list[str],
    tmp_path: Path,
    ray_here: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(metrics: Mapping[str, float]) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    run, cluster = tmp_path / "run", spec.load_cluster_spec(cluster_file(place, 2))
    recipe = recipes.load_recipe("csv", settings)
    with pytest.raises(WorkerError, match=r"ZeroDivisionError: nobody foresaw this") as caught:
        fit.fit(recipe, cluster.with_metadata(max_failures=0), run, report=fail)
    assert "\n" not in str(caught.value) and str(run / "traceback.txt") in str(caught.value)
    assert "raise ZeroDivisionError" in (run / "traceback.txt").read_text()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.ray
def test_what_only_a_user_can_mend_is_one_line(
    place: Path,
    settings: list[str],
    tmp_path: Path,
    ray_here: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hopeless = [
        "optimizer.name=sgd",
        "optimizer.learning_rate=1e30",
        "optimizer.max_grad_norm=null",
    ]
    arguments = ["csv", *settings, *hopeless, "schedule.warmup=0", "--run", str(tmp_path / "run")]
    status = main([*arguments, "--cluster", str(cluster_file(place, 2))])
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("error: the loss of step") and len(said.splitlines()) == 1
