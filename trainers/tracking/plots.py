"""Plots of a run as PNG files: loss, metric, speed, and those of `answer_plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainers.tracking.answer_plots import HELD_OUT, TestRows, draw_answers
from trainers.tracking.run_directory import RunDirectory

matplotlib.rcParams["figure.dpi"] = 110

SMOOTH = "#b3560f"
FEW_EVALUATIONS = 3  # fewer make no curve
FEW_STEPS = 40  # of a training loss, whose steps are marked


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
    draw_answers(directory, labels, test, rows)


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


def _moving_average(values: np.ndarray, weight: float = 0.95) -> np.ndarray:
    """Return the exponential moving average, corrected for its start."""
    average, smooth = 0.0, []
    for count, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        smooth.append(average / (1 - weight**count))
    return np.array(smooth)
