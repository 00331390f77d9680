"""Plots of a run: which files are drawn, and what is in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.support.metric_rows import evaluation_row, step_row
from trainers.tracking.plots import draw_plots
from trainers.tracking.run_directory import RunDirectory

STEPS = [step_row(n, loss=loss) for n, loss in ((1, 4.0), (2, 2.0))]
EVALUATIONS = [evaluation_row(n, metrics={"loss": 1 / n, "f1": n / 10}) for n in (1, 2)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Axes]:
    """The axes of each plot, by the name of its file, as it is written."""
    axes: dict[str, Axes] = {}
    save = Figure.savefig

    def keep(self: Figure, path: Path, **options: Any) -> None:
        (axes[path.name],) = self.axes
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return axes


def draw(directory: Path, rows: list[Any], metric: str = "f1", confusion: Any = None) -> set[str]:
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = {} if confusion is None else {"confusion": confusion}
    draw_plots(RunDirectory(directory), metric, ("neg", "pos"), test)
    return {path.name for path in (directory / "plots").iterdir()}


def lines(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(x, pytest.approx(y)) for x, y in line.get_xydata()]
        for line in axes.lines
    }


def test_the_loss_is_drawn_as_it_is_and_smoothed_beside_that_of_validation(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    assert draw(tmp_path, [*STEPS, *EVALUATIONS]) == {"loss.png", "f1.png"}
    # The second mean of weight 0.95, corrected for its start.
    smooth = (0.95 * 0.05 * 4 + 0.05 * 2) / (1 - 0.95**2)
    assert lines(drawn["loss.png"]) == {
        "training, each step": [(1, 4), (2, 2)],
        "training, smoothed": [(1, 4), (2, smooth)],
        "validation": [(1, 1), (2, 0.5)],
    }
    assert lines(drawn["f1.png"]) == {"validation": [(1, 0.1), (2, 0.2)]}
    assert drawn["f1.png"].get_ylabel() == "f1"


def test_what_an_evaluation_lacks_is_left_out(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    odd = [evaluation_row(3, metrics={"f1": "high"}), evaluation_row(4, metrics={"loss": 0.1})]
    assert draw(tmp_path, [*STEPS, *EVALUATIONS, *odd]) == {"loss.png", "f1.png"}
    assert lines(drawn["f1.png"]) == {"validation": [(1, 0.1), (2, 0.2)]}


def test_a_metric_that_is_the_loss_does_not_replace_its_plot(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    assert draw(tmp_path, [*STEPS, *EVALUATIONS], "loss") == {"loss.png"}
    assert len(lines(drawn["loss.png"])) == 3


def test_a_run_without_steps_has_empty_plots(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    assert draw(tmp_path, []) == {"loss.png", "f1.png"}
    assert lines(drawn["loss.png"]) == {} and drawn["loss.png"].get_legend() is None


@pytest.mark.parametrize("confusion", [None, [], [3, 4]])
def test_there_is_a_confusion_matrix_only_where_classes_were_counted(
    tmp_path: Path, confusion: Any
) -> None:
    assert "confusion.png" not in draw(tmp_path, [], confusion=confusion)


def test_a_confusion_matrix_shades_shares_of_the_true_class_and_writes_counts(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    assert "confusion.png" in draw(tmp_path, [], confusion=[[90, 10], [0, 0]])
    axes = drawn["confusion.png"]
    assert axes.images[0].get_array().tolist() == [[0.9, 0.1], [0, 0]]
    texts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert texts == {
        (0, 0): ("90", "white"), (1, 0): ("10", "black"),
        (0, 1): ("0", "black"), (1, 1): ("0", "black"),
    }  # fmt: skip
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["neg", "pos"]
