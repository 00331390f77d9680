"""Plots of a run: which files are drawn, and what is in them."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.support.metric_rows import evaluation_row, step_row
from trainers.tracking.answer_plots import TestRows, draw_answers, draw_confusion
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
        axes[path.name] = self.axes[0]
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


def test_speed_is_drawn_with_mfu_or_flops(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    rates = [{"tokens_per_second_per_device": float(100 * n)} for n in (1, 2)]
    steps = [step_row(n, **rate, tflops_per_device=n / 8) for n, rate in enumerate(rates, 1)]

    def panels() -> dict[str, list[tuple[float, float]]]:
        found = drawn["throughput.png"].figure.axes
        return {axes.get_ylabel(): next(iter(lines(axes).values())) for axes in found}

    assert "throughput.png" in draw(tmp_path, steps)
    speed = {"tokens/s a device": [(1, 100), (2, 200)]}
    assert panels() == speed | {"GFLOP/s a device": [(1, 125), (2, 250)]}
    draw(tmp_path, [row | {"tflops_per_device": row["step"]} for row in steps])
    assert panels() == speed | {"TFLOP/s a device": [(1, 1), (2, 2)]}
    draw(tmp_path, [row | {"mfu": 0.1 * row["step"]} for row in steps])
    assert panels() == speed | {"MFU in %": [(1, 10), (2, 20)]}


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


def test_one_evaluation_is_marked_and_written_over_the_loss_of_each_step(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    draw(tmp_path, [*STEPS, evaluation_row(2, metrics={"loss": 0.5, "f1": 0.2})])
    metric = drawn["f1.png"]
    (point,) = metric.lines
    assert point.get_marker() == "o" and [text.get_text() for text in metric.texts] == ["0.200"]
    assert metric.get_ylim()[1] > 1 and metric.get_xlim()[0] == 0
    (beside,) = [each for each in metric.figure.axes if each is not metric]
    assert lines(beside)["training, each step"] == [(1, 4), (2, 2)]
    assert beside.get_ylabel() == "training loss"
    told = [text.get_text() for text in metric.get_legend().get_texts()]
    assert told == ["training, each step", "training, smoothed", "validation"]


def test_three_evaluations_are_a_curve_of_their_own(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    more = [evaluation_row(n, metrics={"f1": n / 10}) for n in (1, 2, 3)]
    draw(tmp_path, [*STEPS, *more])
    assert len(drawn["f1.png"].figure.axes) == 1 and not drawn["f1.png"].texts


def test_a_single_step_is_seen(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    draw(tmp_path, [STEPS[0]])
    assert drawn["loss.png"].lines[0].get_marker() == "."


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


def test_a_wide_confusion_matrix_can_be_read(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    """Every name is there and apart from the next, and only cells that count anything say so."""
    names = [f"a class with a rather long name, {number}" for number in range(24)]
    counts = np.diag(np.arange(1, 25))
    counts[3, 5] = 7
    draw_confusion(tmp_path / "wide.png", counts, names)
    axes = drawn["wide.png"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(texts) == 25 and texts[5, 3] == "7" and texts[23, 23] == "24"
    told = [label.get_text() for label in axes.get_xticklabels()]
    assert len(told) == 24 and max(map(len, told)) <= 24
    axes.figure.canvas.draw()
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not [one for one, other in itertools.pairwise(boxes) if one.overlaps(other)]
    inches = axes.figure.get_size_inches()
    assert max(inches) < 14
    assert axes.get_title() == "307 test rows, 97.7% of them right"


def test_of_many_classes_the_pairs_most_often_mixed_up_are_drawn(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    counts = 5 * np.eye(60, dtype=int)
    counts[3, 5], counts[40, 2] = 7, 9
    listed = {"true": [3, 40, 1], "predicted": [5, 2, 1], "rows": [7, 9, 5]}
    names = [str(n) for n in range(60)]
    for confusion in (counts.tolist(), listed):
        test = {"confusion": confusion, "rows": 316}
        draw_answers(tmp_path, names, test)
        axes = drawn["confusion.png"]
        assert [bar.get_width() for bar in axes.patches] == [9, 7]
        told = [label.get_text() for label in axes.get_yticklabels()]
        assert told == ["40 \N{RIGHTWARDS ARROW} 2", "3 \N{RIGHTWARDS ARROW} 5"]
        assert axes.get_title() == "16 of 316 test rows are wrong, in 2 pairs of classes"


def test_a_plot_of_many_pairs_stays_small(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    source = np.random.default_rng(0)
    counts = source.integers(0, 9, (200, 200))
    draw_answers(tmp_path, [f"class {n}" for n in range(200)], {"confusion": counts, "rows": 1})
    assert len(drawn["confusion.png"].patches) == 25
    assert max(drawn["confusion.png"].figure.get_size_inches()) < 10


def test_reliability_is_drawn_before_and_after_the_temperature(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    # Of ten rows nine are right; said were 0.99 before the logits were divided by 2, and 0.91 now.
    targets = np.array([1] * 9 + [0])
    logits = np.tile([0.0, np.log(0.99 / 0.01) / 2], (10, 1))
    answered(tmp_path, TestRows("classification", logits, targets, temperature=2.0))
    _, before, after = drawn["reliability.png"].lines
    assert before.get_xydata().tolist() == [[pytest.approx(0.99), 0.9]]
    now = 1 / (1 + np.sqrt(0.01 / 0.99))
    assert after.get_xydata().tolist() == [[pytest.approx(now), 0.9]]
    assert before.get_label() == "before (ECE 0.090)"
    answered(tmp_path, TestRows("classification", logits, targets))
    assert len(drawn["reliability.png"].lines) == 2, "without a temperature there is one curve"


def answered(directory: Path, rows: TestRows, labels: tuple[str, ...] = ()) -> None:
    draw_plots(RunDirectory(directory), "loss", labels, {}, rows)


def test_a_regression_is_predicted_over_true(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    rows = TestRows("regression", np.array([[1.0], [2.5], [4.0]]), np.array([1.0, 2.0, 5.0]))
    answered(tmp_path, rows)
    axes = drawn["predicted.png"]
    points = axes.collections[0].get_offsets()
    assert np.asarray(points).tolist() == [[1, 1], [2, 2.5], [5, 4]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true", "predicted")
    assert axes.get_title() == "test rows, 0.5 off on average"
    (equal,) = axes.lines
    assert list(equal.get_xdata()) == list(equal.get_ydata())


def test_a_prediction_that_is_no_number_is_left_out(tmp_path: Path, drawn: dict[str, Axes]) -> None:
    logits = np.array([[1.0], [np.nan], [np.inf]])
    answered(tmp_path, TestRows("regression", logits, np.array([1.5, 2.0, 3.0])))
    assert len(drawn["predicted.png"].collections[0].get_offsets()) == 1
    assert drawn["predicted.png"].get_title() == "test rows, 0.5 off on average"


def test_precision_over_recall_says_where_the_threshold_stands(
    tmp_path: Path, drawn: dict[str, Axes]
) -> None:
    scores = np.array([[0.9, 0.3], [0.6, 0.8], [0.4, 0.2], [0.2, 0.1]])
    targets = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    logits = np.log(scores / (1 - scores))
    rows = TestRows("multi-label", logits, targets, {"plot": 0.35})
    answered(tmp_path, rows, ("plot", "cast"))
    axes = drawn["precision-recall.png"]
    curve, threshold, _ = axes.lines
    # Of the scores 0.9, 0.6, 0.4 and 0.2 the first and the third are right.
    assert curve.get_label() == "plot, from 0.35", "a label of no row has no recall"
    assert list(curve.get_xdata()) == [0, 0.5, 0.5, 1, 1]
    assert list(curve.get_ydata()) == pytest.approx([1, 1, 1 / 2, 2 / 3, 1 / 2])
    assert threshold.get_xydata().tolist() == [[1, pytest.approx(2 / 3)]]


def test_classes_have_no_such_plots(tmp_path: Path) -> None:
    answered(tmp_path, TestRows("classification", np.zeros((2, 2)), np.array([0, 1])))
    answered(tmp_path, TestRows("multi-label", np.zeros((0, 2)), np.zeros((0, 2))))
    found = {path.name for path in (tmp_path / "plots").iterdir()}
    assert found == {"loss.png", "reliability.png"}
