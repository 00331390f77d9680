"""Figures of each value of a column: of which rows, worst first, and where they are told."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.layouts import make_loop
from tests.support.tickets import ticket_recipe, write_tickets
from trainers.data.files import DataError
from trainers.evaluation.assessment import Assessment, assess
from trainers.evaluation.intervals import Answers, compute_figures
from trainers.evaluation.slices import MAX_VALUES, measure_slices
from trainers.tracking.run_directory import RunDirectory
from trainers.tracking.verdict_lines import format_slices


def test_each_value_has_the_figures_of_its_rows_and_the_worst_comes_first() -> None:
    source = np.random.default_rng(0)
    targets = source.integers(0, 3, 300)
    cells = source.choice(["de", "en", "fr"], 300)
    wrong = (cells == "fr") & (source.random(300) < 0.6)
    answers = Answers("classification", 2.0 * np.eye(3)[np.where(wrong, (targets + 1) % 3, targets)], targets)  # fmt: skip  # noqa: E501
    (found,) = measure_slices({"lang": cells.tolist()}, answers, "f1").values()
    assert found[0]["value"] == "fr"
    assert {each["value"]: each["rows"] for each in found} == {
        value: int((cells == value).sum()) for value in ("de", "en", "fr")
    }
    of_fr = cells == "fr"
    part = Answers("classification", answers.outputs[of_fr], targets[of_fr])
    figure = found[0]["figure"]
    assert figure["value"] == pytest.approx(compute_figures(part)["f1"], abs=1e-6)
    assert figure["low"] < figure["value"] < figure["high"] < 0.7


def test_errors_are_worst_where_they_are_largest_and_rare_values_are_left_out() -> None:
    true = np.zeros(200)
    said = np.repeat(np.arange(100.0), 2)[:, None]
    cells = [f"v{n}" for n in range(99) for _ in range(2)] + ["once", "too"]
    answers = Answers("regression", said, true)
    (found,) = measure_slices({"kind": cells}, answers, "mae").values()
    assert len(found) == MAX_VALUES and found[0]["figure"]["value"] == 19.0
    assert "once" not in [each["value"] for each in found]


def write_sliced(path: Path) -> Path:
    """Write tickets with a column more, of which some cells are empty."""
    write_tickets(path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="") as file:
        lines = [[*row, ("web", "mail", "")[place % 3]] for place, row in enumerate(rows[1:])]
        csv.writer(file).writerows([[*rows[0], "channel"], *lines])
    return path


def assess_here(folder: Path, bert: Path, *settings: str) -> Assessment:
    recipe = ticket_recipe(folder / "tickets.csv", bert, "classification", *settings)
    loop = make_loop(recipe, folder / "cache")
    (folder / "run").mkdir()
    return assess(loop, str, folder / "cache", RunDirectory(folder / "run"))


def test_a_run_measures_the_values_of_its_columns(tmp_path: Path, tiny_bert: Path) -> None:
    write_sliced(tmp_path / "tickets.csv")
    found = assess_here(tmp_path, tiny_bert, "data.slices=[channel]")
    (values,) = found.verdict["slices"].values()
    assert {each["value"] for each in values} == {"web", "mail", "(missing)"}
    assert sum(each["rows"] for each in values) == found.metrics["rows"]
    with (tmp_path / "run" / "errors.csv").open(newline="") as file:
        places = [int(row["row"]) for row in csv.DictReader(file)]
    web = sum((place - 2) % 3 == 0 for place in places)  # lines from 1, the header first
    assert next(each["rows"] for each in values if each["value"] == "web") == web
    told = format_slices(found.verdict)
    assert told[0] == "f1 by channel, the worst first:" and len(told) == 4


def test_a_column_that_is_not_there_is_refused_before_training(
    tmp_path: Path, tiny_bert: Path
) -> None:
    write_sliced(tmp_path / "tickets.csv")
    with pytest.raises(DataError, match=r"data\.slices.*'language'|'language'.*data\.slices"):
        assess_here(tmp_path, tiny_bert, "data.slices=[language]")


def test_a_value_that_is_worse_beyond_chance_is_said() -> None:
    from trainers.evaluation.sentences import _about_slices

    values: list[dict[str, Any]] = [
        {"value": "fr", "rows": 30, "figure": {"value": 0.4, "low": 0.3, "high": 0.5}},
        {"value": "de", "rows": 90, "figure": {"value": 0.9, "low": 0.8, "high": 0.95}},
    ]
    verdict = {"metric": "f1", "figures": {"f1": {"value": 0.8}}, "slices": {"lang": values}}
    (said,) = _about_slices(verdict)
    assert said.startswith("Worst by lang: 'fr' (30 rows), f1 0.400 (0.30 to 0.50), where all rows")
    values[0]["figure"]["high"] = 0.85
    assert _about_slices(verdict) == []


def test_a_test_source_of_its_own_is_read(tmp_path: Path, tiny_bert: Path) -> None:
    write_sliced(tmp_path / "tickets.csv")
    lines = (tmp_path / "tickets.csv").read_text().splitlines()
    test = [lines[0], *(line.rpartition(",")[0] + ",fax" for line in lines[1:40])]
    (tmp_path / "test.csv").write_text("\n".join(test) + "\n")
    settings = "data.slices=[channel]", f"data.test={tmp_path / 'test.csv'}"
    found = assess_here(tmp_path, tiny_bert, *settings)
    assert [each["value"] for each in found.verdict["slices"]["channel"]] == ["fax"]
