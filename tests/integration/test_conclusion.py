"""The end of a run through the front door: calibrated bundle, chosen metric, plots that fail."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cluster import spec
from cluster.settings import SettingsError
from cluster.spec import ClusterSpec
from serving.engine.engine import Engine
from tests.support.tickets import ticket_recipe, write_tickets
from trainers.checkpoint import checkpoint
from trainers.config import recipe as recipes
from trainers.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from trainers.models.card import read_card
from trainers.runtime import conclusion, fit
from trainers.tracking import plots
from trainers.tracking.run_directory import RunDirectory


@pytest.fixture
def here(tmp_path: Path) -> ClusterSpec:
    """This machine, training in the calling process."""
    path = tmp_path / "cluster.yaml"
    metadata = {"devices_per_node": 0, "cache": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    return spec.load_cluster_spec(path)


def train(
    folder: Path, here: ClusterSpec, bert: Path, task: str, *settings: str
) -> tuple[RunDirectory, dict[str, Any]]:
    source = write_tickets(folder / "tickets.csv", task)
    recipe = ticket_recipe(source, bert, task, "linear_probe=false", *settings)
    outcome = fit.fit(recipe, here, folder / "run")
    return RunDirectory(folder / "run"), outcome.result


@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_a_bundle_answers_with_the_probabilities_that_were_measured(
    tmp_path: Path,
    here: ClusterSpec,
    tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
) -> None:
    monkeypatch.setattr("trainers.evaluation.assessment.fit_temperature", lambda _: 0.25)
    run, result = train(tmp_path, here, tiny_bert, task, "stopping.max_steps=6")
    card = read_card(run.bundle_path)
    assert card.temperature == result["verdict"]["calibration"]["temperature"] == 0.25
    assert card.metrics == result["test"]
    stored = read_predictions(run.path / PREDICTIONS_FILE, "run")
    errors = (run.path / "errors.csv").read_text().splitlines()
    assert len(errors) == len(stored.predictions) + 1
    lines = Path(tmp_path / "tickets.csv").read_text().splitlines()
    engine = Engine.load(run.bundle_path)
    answered = {tuple(np.round(each.logits, 3)) for each in engine.predict(
        [line.rpartition(",")[0] for line in lines[1:]]
    )}  # fmt: skip
    measured = {tuple(row) for row in stored.predictions.logits.round(3).tolist()}
    close = [min(np.abs(np.array(one) - other).max() for other in answered) for one in measured]
    assert max(close) < 2e-3, "the engine computes the logits of the test rows"
    assert (run.path / "plots" / "reliability.png").is_file()


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("classification", "mcc"),
        ("classification", "auroc"),
        ("multi-label", "average_precision"),
        ("regression", "spearman"),
        ("regression", "pearson"),
    ],
)
def test_a_metric_chooses_the_best_checkpoint(
    tmp_path: Path, here: ClusterSpec, tiny_bert: Path, task: str, metric: str
) -> None:
    settings = (f"evaluation.metric={metric}", "evaluation.every_steps=3", "stopping.max_steps=9")
    run, result = train(tmp_path, here, tiny_bert, task, *settings)
    values = {row["step"]: row["metrics"][metric] for row in run.metric_rows("evaluation")}
    assert len(values) == 3 and result["validation"] == {metric: max(values.values())}
    assert values[result["best_step"]] == max(values.values())
    figure = result["verdict"]["figures"][metric]
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert result["verdict"]["metric"] == metric
    assert metric in result["verdict"]["baselines"]["bag-of-words"]
    assert not [row for row in run.metric_rows("evaluation") if "confusion" in row["metrics"]]


@pytest.mark.parametrize("is_better", [True, False])
def test_the_mean_of_the_last_checkpoints_is_kept_where_it_is_better(
    tmp_path: Path,
    here: ClusterSpec,
    tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_better: bool,
) -> None:
    judge = conclusion._average_checkpoints

    def decide(*args: Any) -> Any:
        judged = judge(*args)
        assert judged is not None
        return dataclasses.replace(judged, is_better=is_better)

    monkeypatch.setattr(conclusion, "_average_checkpoints", decide)
    settings = ("evaluation.every_steps=3", "stopping.max_steps=9", "checkpoints.average=2")
    more = ("checkpoints.keep=1", "evaluation.calibrate=false")
    run, result = train(tmp_path, here, tiny_bert, "classification", *settings, *more)
    average = result["average"]
    assert (average["steps"], average["kept"]) == ([6, 9], is_better)
    saved = {step: checkpoint.find_checkpoint(run.checkpoints, step) for step in (6, 9)}
    weights = {step: dict(each.iter_tensors()) for step, each in saved.items() if each is not None}
    name = "net.bert.encoder.layer.1.output.dense.weight"
    expected = (weights[6][name].double() + weights[9][name]).div(2).float()
    if not is_better:
        best = checkpoint.find_checkpoint(run.checkpoints, result["best_step"])
        assert best is not None
        expected = dict(best.iter_tensors())[name]
    bundled = load_file(run.bundle_path / "model.safetensors")[name.removeprefix("net.")]
    assert torch.equal(bundled, expected)
    value = average["value"] if is_better else average["best"]
    assert result["validation"] == {"f1": value}
    words = "are the mean of those of steps 6, 9" if is_better else "is left out: the best"
    assert any(words in sentence for sentence in result["verdict"]["sentences"])


def test_an_average_is_no_setting_for_a_run_without_validation_rows(tmp_path: Path) -> None:
    settings = ["checkpoints.average=3", "data.validation=0", "stopping.patience=null"]
    with pytest.raises(SettingsError, match=r"checkpoints\.average = 3 is compared with the best"):
        recipes.load_recipe("csv", settings)


def test_a_plot_that_fails_costs_a_warning_and_no_result(
    tmp_path: Path,
    here: ClusterSpec,
    tiny_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[bool] = []

    def fail(run: RunDirectory, *_: object) -> None:
        seen.append(run.result_path.is_file() and (run.bundle_path / "bundle.json").is_file())
        raise MemoryError("18 GB")

    monkeypatch.setattr(plots, "draw_plots", fail)
    run, result = train(tmp_path, here, tiny_bert, "classification", "stopping.max_steps=2")
    assert seen == [True], "result and bundle are there before the first picture"
    assert json.loads(run.result_path.read_text()) == result
    assert "a plot could not be drawn, and all else of the run is there: MemoryError: 18 GB" in (
        capsys.readouterr().out
    )
