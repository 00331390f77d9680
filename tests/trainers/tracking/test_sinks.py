"""The trackers themselves: TensorBoard files, MLflow's file store, W&B without a server."""

from pathlib import Path

import pytest
import wandb
from mlflow import MlflowClient
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainers.tracking.metric_logger import MetricLogger
from trainers.tracking.run_directory import RunDirectory
from trainers.training.events import EvalEvent, StepEvent

SETTINGS = {"seed": 7, "model": {"name": "tiny"}, "data": {"text": ["title", "body"]}}
RESULT = {
    "steps": 3,
    "best_step": 3,
    "stopped_early": False,
    "validation": {"f1": 0.75},
    "test": {"f1": 0.5, "rows": 35, "confusion": [[1]]},
}


def track(run: RunDirectory, tracker: str, first: int, last: int, ends: bool = True) -> None:
    """A run, or a resumed one, of the steps `first` to `last` as a worker records it."""
    recorder = MetricLogger(run, first - 1, [tracker], SETTINGS)
    recorder.log_start(step=first - 1, total_steps=3)
    for number in range(first, last + 1):
        recorder.log_event(StepEvent(number, 0, 1.0 / number, 1e-4, 1.0, 8, 80, 100, 2, 0.5))
    recorder.log_event(EvalEvent(last, 0, {"f1": 0.75, "confusion": [[1]]}, True, 0.1))
    if ends:
        recorder.log_result(RESULT)
    recorder.close()
    assert list(run.metric_rows("warning")) == []


def test_tensorboard_shows_steps_evaluations_and_the_result(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    track(run, "tensorboard", 1, 3, ends=False)
    track(run, "tensorboard", 3, 3)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3], "the step computed again counts once"
    assert losses[1].value == pytest.approx(0.5)
    assert events.Scalars("validation/f1")[-1].value == 0.75
    (text,) = events.Tensors("result/text_summary")
    assert f"{tmp_path}/bundle" in text.tensor_proto.string_val[0].decode()


def mlflow_runs(store: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MlflowClient, list[Run]]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("bertha")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_mlflow_keeps_a_run_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = RunDirectory(tmp_path / "mine")
    run.path.mkdir()
    track(run, "mlflow", 1, 3)
    client, (found,) = mlflow_runs(run.path / "mlruns", monkeypatch)
    assert found.info.status == "FINISHED" and found.info.run_name == "mine"
    assert found.data.params == {
        "seed": "7",
        "model.name": "tiny",
        "data.text": "['title', 'body']",
    }
    assert found.data.metrics["test/f1"] == 0.5 and found.data.metrics["validation/f1"] == 0.75
    assert found.data.tags["bertha.bundle"] == str(run.bundle_path)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]


def test_mlflow_goes_on_with_the_run_that_was_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "server"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = RunDirectory(tmp_path / "mine")
    run.path.mkdir()
    track(run, "mlflow", 1, 2, ends=False)
    client, (found,) = mlflow_runs(store, monkeypatch)
    assert found.info.status == "KILLED" and "bertha.bundle" not in found.data.tags
    track(run, "mlflow", 3, 3)
    _, (again,) = mlflow_runs(store, monkeypatch)
    assert (again.info.run_id, again.info.status) == (found.info.run_id, "FINISHED")
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert not (run.path / "mlruns").exists()


def test_trials_share_the_store_of_their_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for number in ("0000", "0001"):
        trial = RunDirectory(tmp_path / "search" / "trials" / number)
        trial.path.mkdir(parents=True)
        track(trial, "mlflow", 1, 1)
    _, found = mlflow_runs(tmp_path / "search" / "mlruns", monkeypatch)
    assert {run.info.run_name for run in found} == {"search 0000", "search 0001"}
    assert {run.data.tags["bertha.search"] for run in found} == {"search"}


@pytest.mark.multiprocess
def test_wandb_writes_files_where_it_has_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    run = RunDirectory(tmp_path / "mine")
    run.path.mkdir()
    track(run, "wandb", 1, 2, ends=False)
    track(run, "wandb", 3, 3)
    wandb.teardown()  # waits for W&B's own process, which writes the files
    written = sorted((run.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 2, "one file a process"
    assert len({path.name for path in written}) == 1, "of one run, to be synced as one"
    first, second = (path.read_bytes() for path in written)
    assert b"train/loss" in first and b"model.name" in first and b"test/f1" not in first
    assert b"test/f1" in second and str(run.bundle_path).encode() in second


def test_wandb_without_a_key_is_left_out_and_never_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    run = RunDirectory(tmp_path)
    recorder = MetricLogger(run, 0, ["wandb"], SETTINGS)
    recorder.close()
    (row,) = run.metric_rows("warning")
    assert "no API key; set WANDB_API_KEY, or WANDB_MODE=offline" in row["text"]
