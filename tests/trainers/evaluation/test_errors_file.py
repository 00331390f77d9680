"""errors.csv reads back as it was written, the worst rows first."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.evaluation import errors_file
from trainers.evaluation.errors_file import write_errors
from trainers.evaluation.held_out import HeldOut
from trainers.evaluation.intervals import Answers

TEXTS = ('she said "no, thanks"', "two\nlines, and a comma", "=1+1; plain", "ünïcode \t tab")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_of(texts: tuple[str, ...] = TEXTS) -> HeldOut:
    return HeldOut(texts, "rows.csv line", tuple(range(2, 2 + len(texts))))


def write(path: Path, task: str, outputs: Any, targets: Any, **more: Any) -> list[dict[str, str]]:
    answers = Answers(task, np.array(outputs), np.array(targets), **more)  # type: ignore[arg-type]
    width = answers.outputs.shape[1]
    write_errors(path, rows_of(), answers, ("a", "b", "c")[:width], "|")
    return read(path)


def test_classes(tmp_path: Path) -> None:
    outputs = [[2.0, 0.0], [0.0, 0.5], [3.0, 0.0], [0.0, 1.0]]
    found = write(tmp_path / "errors.csv", "classification", outputs, [0, 1, 1, 0])
    assert [row["row"] for row in found] == ["4", "5", "3", "2"]
    assert [row["text"] for row in found] == [TEXTS[2], TEXTS[3], TEXTS[1], TEXTS[0]]
    assert [row["true"] for row in found] == ["b", "a", "b", "a"]
    assert [row["answer"] for row in found] == ["a", "b", "b", "a"]
    assert [row["wrong"] for row in found] == ["yes", "yes", "no", "no"]
    assert found[0]["confidence"] == "0.9526"


def test_a_threshold_changes_the_answer_and_not_the_rank(tmp_path: Path) -> None:
    outputs = [[2.0, 0.0], [0.0, 0.5], [3.0, 0.0], [0.0, 1.0]]
    shift = np.array([0.0, 0.7])
    found = write(tmp_path / "errors.csv", "classification", outputs, [0, 1, 1, 0], shift=shift)
    assert [row["answer"] for row in found] == ["a", "b", "a", "a"]
    assert found[2]["confidence"] == "0.3775" and found[2]["wrong"] == "yes"


def test_several_labels(tmp_path: Path) -> None:
    outputs = [[2.0, 2.0, -2.0], [-9.0, -9.0, -9.0], [4.0, -4.0, -4.0], [1.0, 1.0, 1.0]]
    targets = [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]]
    found = write(tmp_path / "errors.csv", "multi-label", outputs, targets)
    assert [row["row"] for row in found] == ["4", "5", "2", "3"]
    assert (found[0]["true"], found[0]["answer"], found[0]["wrong"]) == ("c", "a", "yes")
    assert (found[2]["true"], found[2]["answer"]) == ("a|b", "a|b")
    assert found[2]["confidence"] == "0.8808" and found[3]["answer"] == ""


def test_numbers(tmp_path: Path) -> None:
    outputs, targets = [[10.0], [20.5], [30.0], [5.0]], [11.0, 20.0, 10.0, 5.0]
    found = write(tmp_path / "errors.csv", "regression", outputs, targets)
    assert [row["error"] for row in found] == ["20", "-1", "0.5", "0"]
    assert found[0]["true"] == "10" and found[0]["answer"] == "30"


def test_only_the_worst_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors_file, "MAX_ROWS", 2)
    found = write(tmp_path / "errors.csv", "regression", [[1.0], [2.0], [9.0], [4.0]], [0.0] * 4)
    assert [row["answer"] for row in found] == ["9", "4"]


def test_half_a_character_does_not_stop_it(tmp_path: Path) -> None:
    answers = Answers("regression", np.zeros((1, 1)), np.zeros(1))
    write_errors(tmp_path / "errors.csv", rows_of(("lone \ud83d surrogate",)), answers, (), "|")
    assert read(tmp_path / "errors.csv")[0]["text"] == "lone ? surrogate"
