"""Plots of a run as PNG files: loss, metric, speed, and how the test rows were answered.

classification: the confusion matrix. multi-label: precision over recall of each label, its
threshold marked. regression: predicted over true values. Takes plain arrays and knows no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.tracking.run_directory import RunDirectory

matplotlib.rcParams["figure.dpi"] = 110

INK, SMOOTH, HELD_OUT = "#1d2321", "#b3560f", "#1f6fb2"
# Told apart by people who see few colours too, each at least 3:1 against white.
COLORS = ("#1f6fb2", "#b3560f", "#2f7d5f", "#a3271f", "#7a4fa8", "#6b6b1f", "#b0397f", "#4d5a66")
FEW_EVALUATIONS = 3  # fewer make no curve
FEW_STEPS = 40  # of a training loss, whose steps are marked
FEW_LABELS = 6  # up to so many, a cell of a confusion matrix that counts nothing says 0
MANY_LABELS = 40  # beyond, the cells of a confusion matrix are too small for numbers
MAX_CURVES = 12  # precision-recall curves in one plot, of the labels with the most rows
LONGEST_NAME = 24  # characters of a label beside an axis
MOST_POINTS = 5_000  # of a scatter plot


@dataclass(frozen=True)
class TestRows:
    """The test rows as they were answered.

    logits: [n, labels]; of a regression [n, 1], in the unit of the targets. targets: class indices
    [n], 0 or 1 [n, labels] for multi-label, or values [n]. thresholds: by label, as in the card.
    """

    __test__ = False  # no case of a test, whatever pytest makes of the name

    task: str
    logits: np.ndarray
    targets: np.ndarray
    thresholds: Mapping[str, float] = field(default_factory=dict)


def draw_plots(
    run: RunDirectory,
    metric: str,
    labels: Sequence[str],
    test: Mapping[str, Any],
    rows: TestRows | None = None,
) -> None:
    """Draw plots/loss.png, plots/<metric>.png, plots/throughput.png, and those of the test rows.

    test: their metrics. rows: the answers themselves, without which neither the values of a
    regression nor precision over recall are drawn.
    """
    directory = run.path / "plots"
    directory.mkdir(exist_ok=True)
    steps, evaluations = list(run.metric_rows("step")), list(run.metric_rows("evaluation"))
    _draw_curves(directory / "loss.png", "loss", steps, evaluations)
    if metric != "loss":
        _draw_curves(directory / f"{metric}.png", metric, steps, evaluations)
    _draw_throughput(directory / "throughput.png", steps)
    confusion = np.array(test.get("confusion", []))
    if confusion.ndim == 2 and confusion.size:
        draw_confusion(directory / "confusion.png", confusion, labels)
    if rows is None or not len(rows.logits):
        return
    if rows.task == "regression":
        draw_regression(directory / "predicted.png", rows.logits.reshape(-1), rows.targets)
    elif rows.task == "multi-label":
        scores = _sigmoid(rows.logits)
        draw_precision_recall(
            directory / "precision-recall.png", scores, rows.targets, labels, rows.thresholds
        )


def draw_confusion(path: Path, counts: np.ndarray, labels: Sequence[str]) -> None:
    """Draw counts [true, predicted], each cell shaded by its share of the true class."""
    number = len(labels)
    inches = 0.6 if number <= 12 else 0.4 if number <= MANY_LABELS else 0.16
    side = 2.2 + inches * number
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_shorten_name(label) for label in labels]
    size = 10 if number <= 12 else 8 if number <= MANY_LABELS else 5
    slanted = number <= 8
    axes.set_xticks(
        range(number), names, fontsize=size, rotation=30 if slanted else 90,
        ha="right" if slanted else "center",
    )  # fmt: skip
    axes.set_yticks(range(number), names, fontsize=size)
    rows = int(counts.sum())
    right = np.trace(counts) / max(1, rows)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{rows:,} test rows, {right:.1%} of them right", fontsize=11)
    # Lines between the cells: in a wide matrix the eye loses the row otherwise.
    axes.set_xticks(np.arange(number - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(number - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="#c9ced4", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    if number > MANY_LABELS:
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.6)
    else:
        _write_counts(axes, counts, shares, size)
    figure.savefig(path)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, size: int) -> None:
    """Write the number into each cell; zeros only where there are few, as they hide the rest."""
    for (true, predicted), count in np.ndenumerate(counts):
        if count or len(counts) <= FEW_LABELS:
            # The shades of "Blues" are dark enough for white from here on (contrast over 4.5).
            ink = "white" if shares[true, predicted] > 0.65 else "black"
            axes.text(
                predicted, true, f"{count:,}", ha="center", va="center", color=ink, fontsize=size
            )


def draw_regression(path: Path, predicted: np.ndarray, true: np.ndarray) -> None:
    """Draw predicted [n] over true [n] values, and the line on which both are equal.

    What is infinite or no number has no place and is left out.
    """
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.add_subplot()
    known = np.isfinite(predicted) & np.isfinite(true)
    if not known.any():
        return
    predicted, true = predicted[known], true[known]
    error = float(np.abs(predicted - true).mean())
    if len(true) > MOST_POINTS:
        kept = np.linspace(0, len(true) - 1, MOST_POINTS).astype(int)
        predicted, true = predicted[kept], true[kept]
    values = np.concatenate([predicted, true])
    margin = 0.04 * float(np.ptp(values)) or 1.0
    ends = [float(values.min()) - margin, float(values.max()) + margin]
    axes.plot(ends, ends, "--", color=INK, linewidth=1, label="predicted = true")
    dense = len(true) > 500
    axes.scatter(
        true, predicted, s=6 if dense else 22, alpha=0.35 if dense else 0.7, color=HELD_OUT,
        linewidths=0, label="a test row",
    )  # fmt: skip
    axes.set(xlabel="true", ylabel="predicted", xlim=ends, ylim=ends, aspect="equal")
    axes.set_title(f"test rows, {error:.3g} off on average", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def draw_precision_recall(
    path: Path,
    scores: np.ndarray,
    targets: np.ndarray,
    labels: Sequence[str],
    thresholds: Mapping[str, float],
) -> None:
    """Draw precision over recall of each label, and where its threshold stands.

    scores: probabilities [n, labels]. targets: 0 or 1 [n, labels]. A label of no test row has no
    recall and is left out; of many labels those with the most rows are drawn.
    """
    figure = Figure(figsize=(8.4, 5), layout="constrained")
    axes = figure.add_subplot()
    support = targets.sum(axis=0)
    order = [int(index) for index in np.argsort(-support, kind="stable") if support[index]]
    shown = order[:MAX_CURVES]
    for place, index in enumerate(shown):
        threshold = thresholds.get(labels[index], 0.5)
        recall, precision = _precision_recall(scores[:, index], targets[:, index])
        color = COLORS[place % len(COLORS)]
        name = f"{_shorten_name(labels[index])}, from {threshold:.2f}"
        style = "-" if place < len(COLORS) else "--"
        axes.step(recall, precision, where="post", color=color, linestyle=style, label=name)
        given = scores[:, index] >= threshold
        right = float((given & (targets[:, index] > 0)).sum())
        if given.any():
            at = right / support[index], right / given.sum()
            axes.plot(*at, "o", color=color, markeredgecolor=INK, markersize=8)
    axes.plot([], [], "o", color="white", markeredgecolor=INK, label="at its threshold")
    left_out = f", the {len(shown)} most frequent of {len(labels)} labels"
    axes.set_title("test rows" + (left_out if len(shown) < len(labels) else ""), fontsize=11)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def _precision_recall(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision at every score of one label [n], from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(targets[order] > 0)
    # Rows of one score are given together, or not at all.
    last = np.flatnonzero(np.append(np.diff(scores[order]), -1.0))
    recall, precision = right[last] / right[-1], right[last] / (last + 1)
    return np.append(0.0, recall), np.append(precision[0], precision)


def _draw_curves(
    path: Path, name: str, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> None:
    """Draw a metric over optimizer steps; for the loss, that of training as well.

    One or two evaluations make no curve: they are marked and written out, and the loss of each
    training step is drawn behind them.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    values = {row["step"]: row["metrics"].get(name) for row in evaluations}
    numbers = {step: value for step, value in values.items() if isinstance(value, (int, float))}
    lines: list[Any] = []
    if name == "loss":
        lines += _draw_training(axes, steps)
    elif steps and len(numbers) < FEW_EVALUATIONS:
        beside = axes.twinx()
        lines += _draw_training(beside, steps)
        beside.set_ylabel("training loss")
        axes.set_zorder(beside.get_zorder() + 1)
        axes.patch.set_visible(False)
    if numbers:
        (line,) = axes.plot(
            list(numbers), list(numbers.values()), "o-", color=HELD_OUT, label="validation"
        )
        lines.append(line)
        if len(numbers) < FEW_EVALUATIONS:
            _write_values(axes, name, numbers, max([*numbers, *(row["step"] for row in steps)]))
    axes.set(xlabel="optimizer step", ylabel=name)
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(
            handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False
        )
    figure.savefig(path)


def _draw_throughput(path: Path, steps: Sequence[Mapping[str, Any]]) -> None:
    """Draw what a device does in each step: tokens/s, and MFU, or FLOP/s without a known peak."""
    name, label, scale = "mfu", "MFU in %", 100.0
    if not any(name in row for row in steps):
        name, label, scale = "tflops_per_device", "TFLOP/s a device", 1.0
        if all(row.get(name, 0.0) < 1 for row in steps):
            label, scale = "GFLOP/s a device", 1000.0
    panels = [("tokens_per_second_per_device", "tokens/s a device", 1.0), (name, label, scale)]
    panels = [panel for panel in panels if any(panel[0] in row for row in steps)]
    if not panels:
        return
    figure = Figure(figsize=(7, 2.2 * len(panels)), layout="constrained")
    shown = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (name, label, scale) in zip(shown, panels, strict=True):
        rows = [row for row in steps if name in row]
        values = [scale * row[name] for row in rows]
        marker = "." if len(rows) < FEW_STEPS else ""
        positions = [row["step"] for row in rows]
        axes.plot(positions, values, marker=marker, color=HELD_OUT, linewidth=1)
        axes.set(ylabel=label, ylim=(0, 1.1 * max(values) or 1))
        axes.grid(alpha=0.3)
    shown[-1].set_xlabel("optimizer step")
    figure.savefig(path)


def _draw_training(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Draw the loss of each step and its moving average; return the lines."""
    if not steps:
        return []
    losses, positions = np.array([row["loss"] for row in steps]), [row["step"] for row in steps]
    marker = "." if len(steps) < FEW_STEPS else ""  # a line through one point is invisible
    each = axes.plot(
        positions, losses, marker=marker, color=SMOOTH, alpha=0.35, linewidth=0.8,
        label="training, each step",
    )  # fmt: skip
    smooth = axes.plot(positions, _moving_average(losses), color=SMOOTH, label="training, smoothed")
    return [*each, *smooth]


def _write_values(axes: Axes, name: str, numbers: Mapping[int, float], last: int) -> None:
    """Write the value beside each evaluation, over the whole run and the metric's whole range."""
    for step, value in numbers.items():
        axes.annotate(
            f"{value:.3f}", (step, value), xytext=(-6, 8), textcoords="offset points",
            ha="right", color=HELD_OUT,
        )  # fmt: skip
    axes.set_xlim(0, 1.05 * max(1, last))
    if name != "loss" and all(0 <= value <= 1 for value in numbers.values()):
        axes.set_ylim(0, 1.08)


def _shorten_name(label: str) -> str:
    return label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def _moving_average(values: np.ndarray, weight: float = 0.95) -> np.ndarray:
    """Return the exponential moving average, corrected for its start."""
    average, smooth = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smooth.append(average / (1 - weight**count))
    return np.array(smooth)
