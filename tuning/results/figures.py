"""Figures of a search as SVG: learning curves, the heat map, importances, the Pareto front.

Text stays text, and the same search gives the same figure, byte for byte.
"""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuning.algorithms.pareto import DeploymentOption, pareto_front
from tuning.algorithms.sampler import expected_score
from tuning.algorithms.trial import Trial, rank_completed, without_repeats
from tuning.results.importance import Importance
from tuning.space.scaling_rule import RATE, SIZE
from tuning.store.reader import SearchSnapshot

INK, WINNER, DEFAULT = "#334155", "#2563eb", "#f97316"
COLORS = {"running": "#14b8a6", "complete": "#64748b", "stopped": "#94a3b8", "failed": "#ef4444"}
MAX_ROWS = 8  # of the heat map; more learning rates are binned


def plot_curves(snapshot: SearchSnapshot, winner: int | None = None) -> str:
    """Plot the metric of every trial over its tokens; repeats are dotted."""
    figure, axes = _new_figure(4.5)
    for trial in snapshot.trials:
        if not trial.curve:
            continue
        number = trial.number if trial.repeats is None else trial.repeats
        color = COLORS[trial.state]
        if number in (winner, 0):
            color = WINNER if number == winner else DEFAULT
        axes.plot(
            [evaluation.tokens for evaluation in trial.curve],
            [snapshot.to_metric(evaluation.score) for evaluation in trial.curve],
            color=color,
            linestyle="-" if trial.repeats is None else ":",
            linewidth=2 if number in (winner, 0) else 1,
            marker="x" if trial.state == "stopped" else None,
            markevery=[-1],
        )
        end = trial.curve[-1].tokens, snapshot.to_metric(trial.curve[-1].score)
        axes.annotate(f" {trial.number}", end, fontsize=7, color=color)
    axes.set(xlabel="tokens trained on", ylabel=snapshot.metric)
    legend = [(WINNER, "winner"), (DEFAULT, "the recipe's own"), (COLORS["stopped"], "stopped")]
    for color, label in legend:
        axes.plot([], [], color=color, label=label)
    axes.legend(fontsize=8)
    return _to_svg(figure, "curves")


@dataclass(frozen=True)
class HeatMap:
    """The best score at each learning rate and batch size: [rates, sizes], NaN if not tried.

    Trials that were stopped, or still run, count with their expected final score. rates: the middle
    of each row, rising. sizes: of each column, rising.
    """

    rates: tuple[float, ...]
    sizes: tuple[float, ...]
    scores: np.ndarray


def build_heat_map(trials: Sequence[Trial]) -> HeatMap | None:
    """Return the heat map; None unless both settings are searched and a trial has a score."""
    completed = rank_completed(trials)
    points = []
    for trial in without_repeats(trials):
        rate, size = trial.settings.get(RATE), trial.settings.get(SIZE)
        score = expected_score(trial, completed)
        if isinstance(rate, (int, float)) and isinstance(size, (int, float)) and score is not None:
            points.append((float(rate), float(size), score))
    if not points:
        return None
    edges = _row_edges(sorted({rate for rate, _, _ in points}))
    sizes = sorted({size for _, size, _ in points})
    scores = np.full((len(edges) - 1, len(sizes)), np.nan)
    for rate, size, score in points:
        cell = sum(rate >= edge for edge in edges[1:-1]), sizes.index(size)
        scores[cell] = np.nanmax([scores[cell], score])
    rates = tuple(math.sqrt(low * high) for low, high in itertools.pairwise(edges))
    return HeatMap(rates, tuple(sizes), scores)


def _row_edges(rates: Sequence[float]) -> list[float]:
    """Return the bounds of the rows: between neighbours if there are few rates, else even."""
    if len(rates) == 1:
        return [rates[0] / 2, rates[0] * 2]
    if len(rates) > MAX_ROWS:
        return [float(edge) for edge in np.geomspace(rates[0], rates[-1], MAX_ROWS + 1)]
    logs = [math.log(rate) for rate in rates]
    inner = [(one + other) / 2 for one, other in itertools.pairwise(logs)]
    ends = 2 * logs[0] - inner[0], 2 * logs[-1] - inner[-1]
    return [math.exp(edge) for edge in (ends[0], *inner, ends[1])]


def plot_heat_map(snapshot: SearchSnapshot) -> str | None:
    """Plot the best metric at each learning rate and batch size; None unless both are searched."""
    heat_map = build_heat_map(snapshot.trials)
    if heat_map is None:
        return None
    figure, axes = _new_figure(4.5)
    sign = snapshot.config.sign
    values, is_higher_better = sign * heat_map.scores, sign > 0
    color_map = "viridis" if is_higher_better else "viridis_r"
    image = axes.imshow(values, aspect="auto", origin="lower", cmap=color_map)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            ink = "white" if (value < middle) == is_higher_better else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(heat_map.sizes)), [f"{size:g}" for size in heat_map.sizes])
    axes.set_yticks(range(len(heat_map.rates)), [f"{rate:.1e}" for rate in heat_map.rates])
    axes.set(xlabel="batch size", ylabel="learning rate")
    figure.colorbar(image, ax=axes, label=snapshot.metric)
    return _to_svg(figure, "heat")


def plot_importances(importances: Sequence[Importance]) -> str:
    """Plot a bar for each setting, with its interval."""
    figure, axes = _new_figure(0.5 * len(importances) + 1.2)
    rows = range(len(importances))
    lows, highs = [each.low for each in importances], [each.high for each in importances]
    axes.barh(rows, [each.share for each in importances], color=WINNER)
    axes.hlines(rows, lows, highs, color=INK)
    axes.set_yticks(rows, [each.key for each in importances])
    axes.invert_yaxis()
    axes.set(xlabel="share of what made trials good", xlim=(0, 1))
    return _to_svg(figure, "importance")


def plot_pareto_front(options: Sequence[DeploymentOption], metric: str, sign: int) -> str:
    """Plot the metric over the price of a million predictions; the front is joined."""
    figure, axes = _new_figure(4.5)
    front = pareto_front(options, sign)
    in_usd = all(option.usd is not None for option in options)

    def position(option: DeploymentOption) -> tuple[float, float]:
        cost = option.usd if in_usd and option.usd is not None else option.cpu_seconds
        return cost, option.metric

    for option in options:
        on_front = option in front
        color = WINNER if on_front else COLORS["failed" if option.refused else "complete"]
        axes.scatter(*position(option), color=color, s=28 if on_front else 14)
        text = f" {option.trial}: {option.engine}, {1000 * option.p95_seconds:.0f} ms"
        axes.annotate(text, position(option), fontsize=7, color=color)
    line = sorted(position(option) for option in front)
    axes.plot(*zip(*line, strict=True), color=WINNER, linewidth=0.8)
    unit = "dollars" if in_usd else "CPU-seconds"
    axes.set(xscale="log", xlabel=f"{unit} a million predictions", ylabel=metric)
    axes.margins(x=0.25)
    return _to_svg(figure, "pareto")


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _to_svg(figure: Figure, name: str) -> str:
    """Render the figure for embedding in a page; ids inside it are unique to `name`."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=False)
    text = file.getvalue()
    return text[text.index("<svg") :]
