"""A model is assessed alike on every layout, and what that leaves in the run directory."""

import csv
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cluster.costmodel.layout import Layout
from tests.support.layouts import make_loop
from tests.support.ranks import spawn_ranks
from tests.support.tickets import ticket_recipe, write_tickets
from trainers.config.recipe import Recipe
from trainers.evaluation import collector
from trainers.evaluation.assessment import Assessment, assess, choose_examples
from trainers.evaluation.collector import PredictionCollector
from trainers.evaluation.intervals import Answers
from trainers.evaluation.predictions import PREDICTIONS_FILE, read_predictions
from trainers.tracking.run_directory import RunDirectory
from trainers.training import figures

TASKS = ("classification", "multi-label", "regression")
LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [{}, {"dp_shard": 2}, {"tp": 2}, {"pp": 2}],
    4: [{"pp": 2, "tp": 2}, {"dp_shard": 2, "tp": 2}],
}


@pytest.fixture(scope="module")
def recipes(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    """A recipe a task, of rows that do not divide evenly over ranks."""
    folder = tmp_path_factory.mktemp("tickets")
    return {
        task: ticket_recipe(
            write_tickets(folder / f"{task}.csv", task), tiny_bert, task, "batch.token_budget=96"
        )
        for task in TASKS
    }


def assess_here(
    recipe: Recipe, folder: Path, run: Path, layout: Layout | None = None
) -> Assessment:
    loop = make_loop(recipe, folder / "cache", layout)
    run.mkdir(exist_ok=True, parents=True)
    return assess(loop, str, folder / "cache", RunDirectory(run))


@pytest.mark.parametrize("task", TASKS)
def test_what_is_left_in_the_run_directory(
    recipes: dict[str, Recipe], tmp_path: Path, task: str
) -> None:
    run = tmp_path / "run"
    found = assess_here(recipes[task], tmp_path, run)
    assert json.loads(json.dumps(found.verdict)) == found.verdict
    figures = found.verdict["figures"]
    for name, figure in figures.items():
        assert figure["value"] == pytest.approx(found.metrics[name], rel=1e-4)
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert "bag-of-words" in found.verdict["baselines"]
    assert found.verdict["rows"] == found.metrics["rows"] > 20
    assert found.verdict["next"] == f"bertha serve {run}"
    with (run / "errors.csv").open(newline="") as file:
        errors = list(csv.DictReader(file))
    assert len(errors) == found.metrics["rows"]
    lines = Path(recipes[task].data.source).read_text().splitlines()
    assert all(row["text"] in lines[int(row["row"]) - 1] for row in errors)
    stored = read_predictions(run / PREDICTIONS_FILE, str(run))
    assert found.predictions is not None
    assert np.array_equal(stored.predictions.logits, found.predictions.logits)
    assert len(found.examples) == 3 and set(found.examples) <= {row["text"] for row in errors}


def test_thresholds_are_applied_to_the_metrics(
    recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, tuned = recipes["multi-label"], dict[str, float]()
    monkeypatch.setattr("trainers.evaluation.calibration.tune_thresholds", lambda *_: dict(tuned))
    plain = assess_here(recipe, tmp_path, tmp_path / "plain")
    tuned |= {"billing": 0.02, "login": 0.98}
    found = assess_here(recipe, tmp_path, tmp_path / "run")
    assert found.thresholds == tuned and found.metrics["loss"] == plain.metrics["loss"]
    scores = found.metrics["per_class"]
    assert scores["billing"]["recall"] == 1.0 and scores["login"]["recall"] == 0.0
    assert scores["delivery"] == plain.metrics["per_class"]["delivery"]
    assert found.verdict["figures"]["f1"]["value"] == pytest.approx(found.metrics["f1"], rel=1e-4)
    without = found.verdict["without_thresholds"]["f1"]
    assert without == pytest.approx(plain.metrics["f1"], rel=1e-4)


@pytest.mark.parametrize("task", ["classification", "multi-label"])
def test_the_temperature_divides_the_logits_of_the_test_rows(
    recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    given = [1.0]
    monkeypatch.setattr("trainers.evaluation.assessment.fit_temperature", lambda _: given[0])
    monkeypatch.setattr("trainers.evaluation.calibration.tune_thresholds", lambda *_: {})
    plain = assess_here(recipes[task], tmp_path, tmp_path / "plain")
    given[0] = 4.0
    found = assess_here(recipes[task], tmp_path, tmp_path / "run")
    assert found.temperature == 4.0 and plain.temperature == 1.0
    assert found.predictions is not None and plain.predictions is not None
    assert np.allclose(found.predictions.logits, plain.predictions.logits / 4, rtol=1e-6)
    answers = found.predictions.to_answers(task)  # type: ignore[arg-type]
    assert found.metrics["loss"] == pytest.approx(answers.losses.mean(), rel=1e-5)
    # Of three classes the order of rows by the probability of one depends on the temperature.
    ranked = ("auroc", "average_precision") if task == "multi-label" else ()
    for name in ("f1", "accuracy", "mcc", "f1_weighted", *ranked):
        if name in found.metrics:
            assert found.metrics[name] == pytest.approx(plain.metrics[name], abs=1e-6)
    calibration = found.verdict["calibration"]
    assert calibration["temperature"] == 4.0
    assert calibration["ece_before"] == plain.verdict["calibration"]["ece"] != calibration["ece"]
    evaluation = recipes[task].evaluation.model_copy(update={"calibrate": False})
    off = recipes[task].model_copy(update={"evaluation": evaluation})
    assert assess_here(off, tmp_path, tmp_path / "off").temperature == 1.0


def test_without_a_baseline_or_test_rows(recipes: dict[str, Recipe], tmp_path: Path) -> None:
    off = recipes["classification"].model_copy(update={"baseline": False})
    found = assess_here(off, tmp_path, tmp_path / "off")
    assert found.verdict["baselines"] == {} and (tmp_path / "off" / "errors.csv").is_file()
    data = off.data.model_copy(update={"test": 0.0})
    none = off.model_copy(update={"data": data})
    found = assess_here(none, tmp_path, tmp_path / "none")
    assert found.metrics == {} and found.verdict["rows"] == 0 and found.examples == ()
    assert not list((tmp_path / "none").iterdir())


def test_of_many_rows_an_even_selection_is_kept(
    recipes: dict[str, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MAX_ROWS", 10)
    found = assess_here(recipes["classification"], tmp_path, tmp_path / "run")
    assert found.predictions is not None and len(found.predictions) == 10
    assert found.predictions.total == found.metrics["rows"] == found.verdict["rows"] > 20
    assert found.verdict["interval_rows"] == 10
    stored = read_predictions(tmp_path / "run" / PREDICTIONS_FILE, "run")
    assert len(stored.digests) == 10


def test_an_evaluation_that_keeps_nothing_is_the_same(
    recipes: dict[str, Recipe], tmp_path: Path
) -> None:
    loop = make_loop(recipes["classification"], tmp_path / "cache")
    kept = PredictionCollector(loop.data.test, 3)
    assert loop.evaluate(loop.data.test) == loop.evaluate(loop.data.test, kept.add)
    found = kept.gather()
    assert found is not None and collector.select_rows(len(loop.data.test), 3).tolist() == list(
        found.rows
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize("size", LAYOUTS)
def test_every_layout_gives_the_same_verdict(
    recipes: dict[str, Recipe], tmp_path: Path, size: int
) -> None:
    jobs = [(task, degrees) for task in TASKS for degrees in LAYOUTS[size]]
    alone = {task: assess_here(recipes[task], tmp_path, tmp_path / "run") for task in TASKS}
    spawn_ranks(_assess_jobs, (size, [recipes[t] for t, _ in jobs], [d for _, d in jobs], tmp_path), nprocs=size)  # fmt: skip  # noqa: E501
    results = [pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in range(size)]
    for number, (task, degrees) in enumerate(jobs):
        first, expected = results[0][number], alone[task]
        assert first.verdict["figures"] == approximately(expected.verdict["figures"]), degrees
        assert first.verdict["baselines"] == approximately(expected.verdict["baselines"])
        assert first.verdict["sentences"] == expected.verdict["sentences"]
        assert first.thresholds == expected.thresholds and first.examples == expected.examples
        assert np.allclose(
            first.predictions.logits, expected.predictions.logits, rtol=1e-4, atol=1e-5
        )
        for other in results[1:]:
            assert other[number].metrics == first.metrics and other[number].verdict == {}


def approximately(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    return pytest.approx(value, rel=2e-3, abs=1e-4) if isinstance(value, float) else value


def _assess_jobs(
    rank: int, size: int, jobs: list[Recipe], layouts: list[dict[str, Any]], folder: Path
) -> None:
    torch.set_num_threads(1)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    found = [
        assess_here(recipe, folder, folder / "run", Layout(**degrees))
        for recipe, degrees in zip(jobs, layouts, strict=True)
    ]
    (folder / f"rank{rank}").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def test_examples_are_short_right_and_of_different_classes() -> None:
    texts = ("too short", "a text that is wrong", "a right text, longer", "a right text here")
    texts += ("one of another class", "x" * 500)
    targets = np.array([0, 0, 0, 0, 1, 2])
    said = np.array([0, 1, 0, 0, 0, 2])
    answers = Answers("classification", np.eye(3)[said], targets)
    assert choose_examples(texts, answers) == ("a right text here", "one of another class")
    numbers = Answers("regression", np.zeros((6, 1)), np.array([9, 5, 1, 7, 3, 0.0]))
    low, middle, high = choose_examples(texts, numbers)
    assert (low, middle, high) == (texts[2], texts[1], texts[3])
