"""Figures of a search as SVG: learning curves, the heat map, importances, the Pareto front.

Text stays text, and the same search gives the same figure, byte for byte. Colours are those of
`static/theme.css` by name, so that a figure is light or dark as the page around it.
"""

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

INK, EDGE, SHEET = "#1d2321", "#84898a", "#fffffe"
WINNER, DEFAULT = "#2f6d5a", "#b3560f"
COLORS = {"running": "#1f6fb2", "complete": "#5c6667", "stopped": "#84898b", "failed": "#a32720"}
# The name of each in the theme. No two are equal to the digit, so each is found again in a figure.
NAMES = {INK: "ink", EDGE: "edge", SHEET: "sheet", WINNER: "winner", DEFAULT: "own"} | {
    color: state for state, color in COLORS.items()
}
THEME: Any = {  # whose type is one literal a setting
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "legend.edgecolor"), EDGE),
    "axes.facecolor": "none",
    "legend.facecolor": SHEET,
}
MAX_ROWS = 8  # of the heat map; more learning rates are binned
LEAST_CONTRAST = 4.5  # of the text in a cell, WCAG 2.2


@mpl.rc_context(THEME)
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
        axes.annotate(f" {trial.number}", end, fontsize=7, color=INK)
    axes.set(xlabel="tokens trained on", ylabel=snapshot.metric)
    legend = [(WINNER, "winner"), (DEFAULT, "the recipe's own"), (COLORS["complete"], "complete")]
    for color, label in legend:
        axes.plot([], [], color=color, label=label)
    axes.plot([], [], color=COLORS["stopped"], marker="x", label="stopped")
    axes.legend(fontsize=8)
    return _to_svg(figure, "curves")


@dataclass(frozen=True)
class HeatMap:
    """The best trial at each learning rate and batch size: [rates][sizes], None if not tried.

    scores: of those trials, NaN where there is none; that of a trial that was stopped, or still
    runs, is its expected final one. rates: the middle of each row, rising. spans: the lowest and
    the highest rate that trials of a row have. sizes: of each column, rising.
    """

    rates: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]
    sizes: tuple[float, ...]
    scores: np.ndarray
    trials: tuple[tuple[Trial | None, ...], ...]


def build_heat_map(trials: Sequence[Trial]) -> HeatMap | None:
    """Return the heat map; None unless both settings are searched and a trial has a score."""
    completed = rank_completed(trials)
    points = []
    for trial in without_repeats(trials):
        rate, size = trial.settings.get(RATE), trial.settings.get(SIZE)
        score = expected_score(trial, completed)
        if isinstance(rate, (int, float)) and isinstance(size, (int, float)) and score is not None:
            points.append((float(rate), float(size), score, trial))
    if not points:
        return None
    tried = sorted({rate for rate, *_ in points})
    edges = _row_edges(tried)
    sizes = sorted({size for _, size, *_ in points})
    scores = np.full((len(edges) - 1, len(sizes)), np.nan)
    best: list[list[Trial | None]] = [[None] * len(sizes) for _ in edges[1:]]
    rows: list[list[float]] = [[] for _ in edges[1:]]
    for rate, size, score, trial in points:
        row, column = sum(rate >= edge for edge in edges[1:-1]), sizes.index(size)
        rows[row].append(rate)
        if not score <= scores[row, column]:
            scores[row, column], best[row][column] = score, trial
    rates = tuple(math.sqrt(low * high) for low, high in itertools.pairwise(edges))
    # A row of even width may have no trial: it is called by its middle.
    spans = tuple(
        (min(row, default=rate), max(row, default=rate))
        for row, rate in zip(rows, rates, strict=True)
    )
    return HeatMap(rates, spans, tuple(sizes), scores, tuple(map(tuple, best)))


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


@mpl.rc_context(THEME)
def plot_heat_map(snapshot: SearchSnapshot) -> str | None:
    """Plot the best trial at each learning rate and batch size; None unless both are searched.

    A cell says its trial's own metric, number and learning rate; its colour is the metric that the
    trial ended at, or is expected to end at.
    """
    heat_map = build_heat_map(snapshot.trials)
    if heat_map is None:
        return None
    figure, axes = _new_figure(1.6 + 0.55 * len(heat_map.rates))
    values = snapshot.config.sign * heat_map.scores
    color_map = mpl.colormaps["viridis" if snapshot.config.sign > 0 else "viridis_r"]
    image = axes.imshow(values, aspect="auto", origin="lower", cmap=color_map)
    low = float(np.nanmin(values))
    spread = float(np.nanmax(values)) - low or 1.0
    for (row, column), value in np.ndenumerate(values):
        trial = heat_map.trials[row][column]
        if trial is not None:
            axes.text(
                column, row, _describe_cell(snapshot, trial), ha="center", va="center", fontsize=8,
                color=_readable_ink(color_map((float(value) - low) / spread)),
            )  # fmt: skip
    axes.set_xticks(range(len(heat_map.sizes)), [f"{size:g}" for size in heat_map.sizes])
    axes.set_yticks(range(len(heat_map.rates)), list(map(_format_span, heat_map.spans)))
    axes.set_xticks(np.arange(len(heat_map.sizes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(heat_map.rates) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=EDGE, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="batch size", ylabel="learning rate")
    figure.colorbar(image, ax=axes, label=snapshot.metric)
    return _to_svg(figure, "heat")


def _describe_cell(snapshot: SearchSnapshot, trial: Trial) -> str:
    """Return what the trial itself reached and had, in two lines."""
    rate = trial.settings[RATE]
    assert isinstance(rate, (int, float)), "build_heat_map takes no other"
    reached = f"{snapshot.to_metric(trial.score or 0.0):.4f}"
    state = "" if trial.state == "complete" else f" {trial.state}"
    return f"{reached}{state}\ntrial {trial.number}, {_format_rate(rate)}"


def _format_span(span: tuple[float, float]) -> str:
    low, high = map(_format_rate, span)
    return low if low == high else f"{low} to\n{high}"


def _format_rate(rate: float) -> str:
    return f"{rate:.2e}".replace("e-0", "e-")


def _readable_ink(color: Sequence[float]) -> str:
    """Return black or white, whichever stands out more from a colour (red, green, blue, ...)."""
    parts = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color[:3]
    ]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "white" if 1.05 / (luminance + 0.05) >= LEAST_CONTRAST else "black"


@mpl.rc_context(THEME)
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


@mpl.rc_context(THEME)
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
        axes.annotate(text, position(option), fontsize=7, color=INK)
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
        figure.savefig(file, format="svg", metadata={"Date": None}, facecolor="none")
    text = file.getvalue()
    # The colour itself stays behind the name, for a figure that is taken out of the page.
    themed = re.sub("|".join(NAMES), lambda found: _themed(found.group()), text)
    return themed[themed.index("<svg") :]


def _themed(color: str) -> str:
    return f"var(--{NAMES[color]}, {color})"
