"""Plots of how the test rows were answered, as PNG files.

classification: the confusion matrix, of many classes the pairs most often mixed up. multi-label:
precision over recall of each label, its threshold marked. Both: how far probabilities are to be
believed. regression: predicted over true values. Takes plain arrays and knows no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.training.figures import bin_confidence, compute_confidence, sigmoid
from trainers.training.metrics import list_confused_pairs

INK, PLAIN, HELD_OUT = "#1d2321", "#b3560f", "#1f6fb2"
# Told apart by people who see few colours too, each at least 3:1 against white.
COLORS = ("#1f6fb2", "#b3560f", "#2f7d5f", "#a3271f", "#7a4fa8", "#6b6b1f", "#b0397f", "#4d5a66")
FEW_LABELS = 6  # up to so many, a cell of a confusion matrix that counts nothing says 0
MANY_LABELS = 40  # beyond, the cells of a confusion matrix are too small for numbers
MOST_PAIRS = 25  # of classes mixed up, that are drawn instead
MAX_CURVES = 12  # precision-recall curves in one plot, of the labels with the most rows
LONGEST_NAME = 24  # characters of a label beside an axis
MOST_POINTS = 5_000  # of a scatter plot


@dataclass(frozen=True)
class TestRows:
    """The test rows as they were answered.

    logits: [n, labels]; of a regression [n, 1], in the unit of the targets. targets: class indices
    [n], 0 or 1 [n, labels] for multi-label, or values [n]. thresholds: by label, as in the card.
    temperature: that the logits were divided by.
    """

    __test__ = False  # no case of a test, whatever pytest makes of the name

    task: str
    logits: np.ndarray
    targets: np.ndarray
    thresholds: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0


def draw_answers(
    directory: Path, labels: Sequence[str], test: Mapping[str, Any], rows: TestRows | None = None
) -> None:
    """Draw confusion.png, predicted.png, precision-recall.png and reliability.png, as there are.

    test: the metrics. rows: the answers themselves, without which the confusions alone are drawn.
    """
    confusion = test.get("confusion", [])
    counts = None if isinstance(confusion, dict) else np.array(confusion)
    if counts is not None and counts.ndim == 2 and 0 < len(counts) <= MANY_LABELS:
        draw_confusion(directory / "confusion.png", counts, labels)
    elif counts is None or (counts.ndim == 2 and counts.size):
        draw_confused_pairs(directory / "confusion.png", confusion, labels, int(test["rows"]))
    if rows is None or not len(rows.logits):
        return
    if rows.task == "regression":
        draw_regression(directory / "predicted.png", rows.logits.reshape(-1), rows.targets)
        return
    if rows.task == "multi-label":
        scores = sigmoid(rows.logits)
        draw_precision_recall(
            directory / "precision-recall.png", scores, rows.targets, labels, rows.thresholds
        )
    draw_reliability(directory / "reliability.png", rows)


def draw_confusion(path: Path, counts: np.ndarray, labels: Sequence[str]) -> None:
    """Draw counts [true, predicted], each cell shaded by its share of the true class."""
    number = len(labels)
    side = 2.2 + (0.6 if number <= 12 else 0.4) * number
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_shorten_name(label) for label in labels]
    size = 10 if number <= 12 else 8
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
    _write_counts(axes, counts, shares, size)
    figure.savefig(path)


def draw_confused_pairs(path: Path, confusion: Any, labels: Sequence[str], rows: int) -> None:
    """Draw a bar for each pair of classes that was mixed up most often: of `rows` test rows.

    A matrix of hundreds of classes can neither be read nor be drawn in bounded memory.
    """
    found = list_confused_pairs(confusion)
    true, predicted, counts = (column[:MOST_PAIRS] for column in found)
    figure = Figure(figsize=(8, 1.4 + 0.28 * max(1, len(counts))), layout="constrained")
    axes = figure.add_subplot()
    names = [
        f"{_shorten_name(labels[one])} \N{RIGHTWARDS ARROW} {_shorten_name(labels[other])}"
        for one, other in zip(true, predicted, strict=True)
    ]
    bars = axes.barh(range(len(counts)), counts, color=HELD_OUT)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_yticks(range(len(counts)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="test rows", ylabel="true \N{RIGHTWARDS ARROW} predicted")
    wrong = int(found[2].sum())
    title = f"{wrong:,} of {rows:,} test rows are wrong, in {len(found[2]):,} pairs of classes"
    axes.set_title(title, fontsize=11)
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


def _shorten_name(label: str) -> str:
    return label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"


def draw_reliability(path: Path, rows: TestRows) -> None:
    """Draw how often answers of each probability are right, before and after the temperature.

    classification: of the likeliest class. multi-label: of every label. The closer to the
    diagonal, the better (Guo et al. 2017, arXiv 1706.04599, figure 1).
    """
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], "--", color=INK, linewidth=1, label="as often as said")
    curves = [(1.0, "as it is", HELD_OUT)]
    if rows.temperature != 1:
        title = f"with temperature {rows.temperature:.3g}"
        curves = [(rows.temperature, "before", PLAIN), (1.0, title, HELD_OUT)]
    for factor, name, color in curves:
        confidence, hits = compute_confidence(rows.task, rows.logits * factor, rows.targets)
        error, said, right, counts = bin_confidence(confidence, hits)
        shown = counts > 0
        axes.plot(said[shown], right[shown], "o-", color=color, label=f"{name} (ECE {error:.3f})")
    axes.set(xlabel="probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{len(rows.logits):,} test rows", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(path)
