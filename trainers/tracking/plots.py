"""Plots of a run: loss, metric and confusion matrix, as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from trainers.tracking.run_directory import RunDirectory

matplotlib.rcParams["figure.dpi"] = 110


def draw_plots(run: RunDirectory, metric: str, labels: Sequence[str], test: dict[str, Any]) -> None:
    """Draw plots/loss.png, plots/<metric>.png and, for classes, plots/confusion.png."""
    directory = run.path / "plots"
    directory.mkdir(exist_ok=True)
    steps, evaluations = list(run.metric_rows("step")), list(run.metric_rows("evaluation"))
    _draw_curves(directory / "loss.png", "loss", steps, evaluations)
    if metric != "loss":
        _draw_curves(directory / f"{metric}.png", metric, [], evaluations)
    confusion = np.array(test.get("confusion", []))
    if confusion.ndim == 2 and confusion.size:
        _draw_confusion(directory / "confusion.png", confusion, labels)


def _draw_curves(
    path: Path, name: str, steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if steps:
        losses = np.array([row["loss"] for row in steps])
        positions = [row["step"] for row in steps]
        axes.plot(positions, losses, alpha=0.3, linewidth=0.8, label="training, each step")
        axes.plot(positions, _moving_average(losses), label="training, smoothed")
    values = {row["step"]: row["metrics"].get(name) for row in evaluations}
    numbers = {step: value for step, value in values.items() if isinstance(value, (int, float))}
    if numbers:
        axes.plot(list(numbers), list(numbers.values()), "o-", label="validation")
    axes.set(xlabel="optimizer step", ylabel=name)
    axes.grid(alpha=0.3)
    if steps or numbers:
        axes.legend()
    figure.savefig(path)


def _draw_confusion(path: Path, counts: np.ndarray, labels: Sequence[str]) -> None:
    side = 2.5 + 0.6 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title="test rows")
    for (true, predicted), count in np.ndenumerate(counts):
        shade = "white" if shares[true, predicted] > 0.5 else "black"
        axes.text(predicted, true, str(count), ha="center", va="center", color=shade)
    figure.savefig(path)


def _moving_average(values: np.ndarray, weight: float = 0.95) -> np.ndarray:
    """Return the exponential moving average, corrected for its start."""
    average, smooth = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smooth.append(average / (1 - weight**count))
    return np.array(smooth)
