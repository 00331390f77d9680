"""Runs are compared on the same rows, whatever order their rows and labels are in."""

from pathlib import Path

import numpy as np
import pytest

from trainers import __main__ as command_line
from trainers.config import recipe as recipes
from trainers.evaluation.compare import compare_runs
from trainers.evaluation.predictions import (
    PREDICTIONS_FILE,
    EvaluationError,
    Predictions,
    StoredPredictions,
    read_predictions,
    write_predictions,
)

LABELS = ("a", "b", "c")
ROWS = 120


def write_run(
    run: Path,
    accuracy: float,
    *overrides: str,
    labels: tuple[str, ...] = LABELS,
    order: np.ndarray | None = None,
    first_row: int = 0,
) -> Path:
    """A run whose model has the first rows right, a share of `accuracy`."""
    run.mkdir()
    recipe = recipes.load_recipe("csv", ["data.source=rows.csv", *overrides])
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    order = np.arange(ROWS) if order is None else order
    true = np.arange(ROWS) % 3
    said = np.where(np.arange(ROWS) < accuracy * ROWS, true, (true + 1) % 3)
    places = np.array([labels.index(label) for label in LABELS])
    logits = np.eye(3, dtype=np.float32)[places[said]][order]
    found = Predictions(np.arange(ROWS), logits, places[true][order], ROWS)
    digests = (np.arange(ROWS, dtype=np.uint64) + first_row)[order]
    stored = StoredPredictions("classification", labels, "f1", digests, found)
    write_predictions(run / PREDICTIONS_FILE, stored)
    return run


def test_a_better_run_is_told_from_one_that_is_alike(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "first", 0.7),
        write_run(tmp_path / "better", 0.9, "optimizer.learning_rate=1e-4", "batch.max_length=64"),
        write_run(tmp_path / "alike", 0.71, "seed=3"),
    ]
    lines = compare_runs([str(run) for run in runs], tmp_path)
    assert lines[0] == "f1 on the same 120 test rows, with 95% intervals:"
    assert lines[1].split()[:2] == [str(runs[0]), "0.700"] and ":" not in lines[1]
    assert "+0.2 (" in lines[2] and lines[2].endswith("): better")
    assert lines[3].endswith("): no clear difference")
    settings = {line.split()[0]: line.split()[1:] for line in lines[5:]}
    assert settings["batch.max_length"] == ["256", "64", "256"]
    assert settings["optimizer.learning_rate"][1] == "0.0001"
    assert settings["seed"] == ["0", "0", "3"]


def test_the_order_of_rows_and_labels_makes_no_difference(tmp_path: Path) -> None:
    mixed = np.random.default_rng(0).permutation(ROWS)
    one = write_run(tmp_path / "one", 0.8)
    other = write_run(tmp_path / "other", 0.8, labels=("c", "a", "b"), order=mixed)
    lines = compare_runs([str(one), str(other)], tmp_path, "accuracy")
    assert lines[0].startswith("accuracy on the same 120")
    assert lines[1].split()[1:] == lines[2].split()[1:5]
    assert "+0 (" in lines[2] and lines[-1] == "the settings are the same"


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path: Path) -> None:
    one = str(write_run(tmp_path / "one", 0.8))
    others = str(write_run(tmp_path / "others", 0.8, first_row=20))
    with pytest.raises(EvaluationError, match=r"same test rows \(100 of 120 and 120 are shared\)"):
        compare_runs([one, others], tmp_path)
    named = str(write_run(tmp_path / "named", 0.8, labels=("c", "a", "b")))
    stored = read_predictions(Path(named) / PREDICTIONS_FILE, named)
    write_predictions(
        Path(named) / PREDICTIONS_FILE,
        StoredPredictions(
            "classification", ("x", "y", "z"), "f1", stored.digests, stored.predictions
        ),
    )
    with pytest.raises(EvaluationError, match="other labels"):
        compare_runs([one, named], tmp_path)
    with pytest.raises(EvaluationError, match="two runs or more"):
        compare_runs([one], tmp_path)
    with pytest.raises(EvaluationError, match="--metric 'r2' does not exist for classification"):
        compare_runs([one, one], tmp_path, "r2")
    with pytest.raises(EvaluationError, match="not a run"):
        compare_runs([one, str(tmp_path)], tmp_path)


def test_a_run_of_an_older_version_says_what_it_lacks(tmp_path: Path) -> None:
    one, old = (write_run(tmp_path / name, 0.8) for name in ("one", "old"))
    (old / PREDICTIONS_FILE).unlink()
    with pytest.raises(EvaluationError, match=r"old: no predictions\.npz"):
        compare_runs([str(one), str(old)], tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    run = write_run(tmp_path / "one", 0.8)
    (run / PREDICTIONS_FILE).write_bytes(damage)
    with pytest.raises(EvaluationError, match=r"predictions\.npz: cannot be read"):
        compare_runs([str(run), str(run)], tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / name, share)) for name, share in (("x", 0.9), ("y", 0.6))]
    assert command_line.main(["compare", *runs, "--metric", "loss"], prog="bertha") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("loss on the same 120 test rows") and said[2].endswith(": worse")
    assert command_line.main(["compare", runs[0]], prog="bertha") == 2
    assert "two runs or more" in capsys.readouterr().err
