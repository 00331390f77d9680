"""Labels that were swapped on purpose are found, and few others are."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster import spec
from cluster.settings import SettingsError
from tests.support.tickets import ticket_recipe, write_tickets
from trainers.evaluation.label_errors import (
    LABEL_ISSUES_FILE,
    confident_labels,
    find_label_issues,
    predict_out_of_fold,
)
from trainers.runtime import fit


def draw_blobs(rows: int, classes: int, swapped: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features [rows, 8] of `classes` blobs, labels of which some are wrong, and which."""
    source = np.random.default_rng(1)
    true = source.integers(0, classes, rows)
    centers = source.normal(0, 3, (classes, 8))
    features = centers[true] + source.normal(size=(rows, 8))
    wrong = source.choice(rows, swapped, replace=False)
    given = true.copy()
    given[wrong] = (given[wrong] + 1) % classes
    return features, given, wrong


def test_swapped_classes_are_found() -> None:
    features, given, wrong = draw_blobs(300, 3, 15)
    issues = find_label_issues(features, given, 3)
    rows = [row for row, *_ in issues]
    found = set(rows) & set(wrong.tolist())
    assert len(found) >= 14 and len(rows) <= 20
    assert set(rows[:13]) <= found, "the most certain come first"
    for row, (label,), (suggested,), confidence, own in issues[:13]:
        assert label == given[row] and suggested == (given[row] - 1) % 3
        assert confidence > 0.5 > own


def test_swapped_labels_of_several_are_found() -> None:
    source = np.random.default_rng(2)
    true = source.random((300, 2)) < 0.5
    features = np.where(true, 2.0, -2.0) @ np.eye(2, 6) + source.normal(0, 0.7, (300, 6))
    given = true.copy()
    given[:10, 1] = ~given[:10, 1]
    issues = find_label_issues(features, given.astype(np.float32), 2)
    assert len({row for row, *_ in issues} & set(range(10))) >= 9 and len(issues) < 16
    row, labels, suggested, *_ = issues[0]
    assert suggested == np.flatnonzero(true[row]).tolist()
    assert labels == np.flatnonzero(given[row]).tolist()


def test_a_label_claims_rows_by_its_own_mean() -> None:
    shares = np.array([[0.9, 0.1]] * 6 + [[0.4, 0.6]] * 5 + [[0.65, 0.35], [0.05, 0.95]])
    targets = np.array([0] * 6 + [1] * 5 + [1, 0])
    # Label 0 has 0.779 on average in its own seven rows, label 1 has 0.558 in its six.
    assert confident_labels(shares, targets).tolist() == [0] * 6 + [1] * 5 + [-1, 1]


def test_labels_of_few_rows_are_left_alone() -> None:
    features, given, _ = draw_blobs(100, 2, 0)
    given[:3] = 2
    rows = {row for row, *_ in find_label_issues(features, given, 4)}
    assert not rows & {0, 1, 2}
    shares = predict_out_of_fold(features, given, 4)
    assert (
        shares.shape == (100, 4) and np.allclose(shares.sum(axis=1), 1) and not shares[:, 3].any()
    )


@pytest.mark.parametrize("setting", ["task=regression", "task=masked-lm"])
def test_tasks_without_labels_are_refused(tmp_path: Path, tiny_bert: Path, setting: str) -> None:
    with pytest.raises(SettingsError, match=r"evaluation\.label_errors"):
        ticket_recipe(
            tmp_path, tiny_bert, setting.partition("=")[2], "evaluation.label_errors=true"
        )


def test_a_run_leaves_the_file(
    tmp_path: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    metadata = {"devices_per_node": 0, "cache": str(tmp_path / "cache")}
    path.write_text(yaml.safe_dump({"provider": {"type": "local"}, "metadata": metadata}))
    source = write_tickets(tmp_path / "tickets.csv")
    settings = ("evaluation.label_errors=true", "stopping.max_steps=1", "baseline=false")
    recipe = ticket_recipe(source, tiny_bert, "classification", *settings)
    fit.fit(recipe, spec.load_cluster_spec(path), tmp_path / "run")
    with (tmp_path / "run" / LABEL_ISSUES_FILE).open(newline="") as file:
        issues = list(csv.DictReader(file))
    lines = source.read_text().splitlines()
    for issue in issues:
        assert lines[int(issue["row"]) - 1] == f"{issue['text']},{issue['given']}"
        assert issue["suggested"] != issue["given"]
    assert f"labels    {len(issues)} of " in capsys.readouterr().out
