"""Figures of a search as SVG: learning curves, the heat map, importances, the Pareto front.

Text stays text, and the same search gives the same figure. Starts nothing and writes nothing.
"""

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuning.algorithms.pareto import Variant, front
from tuning.results.heatmap import heat_map
from tuning.results.importance import Importance
from tuning.store.reader import Snapshot

INK, WINNER, DEFAULT = "#334155", "#2563eb", "#f97316"
SHADES = {"running": "#14b8a6", "complete": "#64748b", "stopped": "#94a3b8", "failed": "#ef4444"}


def curves(snapshot: Snapshot, winner: int | None = None) -> str:
    """The metric of every trial over the tokens it has seen; repetitions dotted."""
    figure, axes = _canvas(4.5)
    for trial in snapshot.trials:
        if not trial.curve:
            continue
        number = trial.number if trial.repeats is None else trial.repeats
        shade = SHADES[trial.state]
        if number in (winner, 0):
            shade = WINNER if number == winner else DEFAULT
        axes.plot(
            [look.tokens for look in trial.curve],
            [snapshot.shown(look.score) for look in trial.curve],
            color=shade,
            linestyle="-" if trial.repeats is None else ":",
            linewidth=2 if number in (winner, 0) else 1,
            marker="x" if trial.state == "stopped" else None,
            markevery=[-1],
        )
        end = trial.curve[-1]
        axes.annotate(
            f" {trial.number}", (end.tokens, snapshot.shown(end.score)), fontsize=7, color=shade
        )
    axes.set(xlabel="tokens trained on", ylabel=snapshot.metric)
    named = [(WINNER, "winner"), (DEFAULT, "the recipe's own"), (SHADES["stopped"], "stopped")]
    for shade, label in named:
        axes.plot([], [], color=shade, label=label)
    axes.legend(fontsize=8)
    return _svg(figure, "curves")


def heat(snapshot: Snapshot) -> str | None:
    """The best metric at each learning rate and batch size; None where not both are searched."""
    found = heat_map(snapshot.trials)
    if found is None:
        return None
    figure, axes = _canvas(4.5)
    shown, is_higher_better = snapshot.sign * found.scores, snapshot.sign > 0
    shades = "viridis" if is_higher_better else "viridis_r"
    image = axes.imshow(shown, aspect="auto", origin="lower", cmap=shades)
    middle = (np.nanmin(shown) + np.nanmax(shown)) / 2
    for (row, column), value in np.ndenumerate(shown):
        if math.isfinite(value):
            ink = "white" if (value < middle) == is_higher_better else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(found.sizes)), [f"{size:g}" for size in found.sizes])
    axes.set_yticks(range(len(found.rates)), [f"{rate:.1e}" for rate in found.rates])
    axes.set(xlabel="batch size", ylabel="learning rate")
    figure.colorbar(image, ax=axes, label=snapshot.metric)
    return _svg(figure, "heat")


def importance(found: Sequence[Importance]) -> str:
    """A bar a setting, with the interval of nine in ten."""
    figure, axes = _canvas(0.5 * len(found) + 1.2)
    places = range(len(found))
    shares = [each.share for each in found]
    axes.barh(places, shares, color=WINNER)
    axes.hlines(places, [each.low for each in found], [each.high for each in found], color=INK)
    axes.set_yticks(places, [each.key for each in found])
    axes.invert_yaxis()
    axes.set(xlabel="share of what made trials good", xlim=(0, 1))
    return _svg(figure, "importance")


def pareto(variants: Sequence[Variant], metric: str, sign: int) -> str:
    """The metric over the price of a million predictions, the front joined, p95 beside each."""
    figure, axes = _canvas(4.5)
    best = front(variants, sign)
    priced = all(variant.usd is not None for variant in variants)
    for variant in variants:
        on_front = variant in best
        shade = WINNER if on_front else SHADES["failed" if variant.refused else "complete"]
        at = (_cost(variant, priced), variant.metric)
        axes.scatter(*at, color=shade, s=28 if on_front else 14)
        text = f" {variant.trial}: {variant.engine}, {1000 * variant.p95_seconds:.0f} ms"
        axes.annotate(text, at, fontsize=7, color=shade)
    line = sorted((_cost(variant, priced), variant.metric) for variant in best)
    axes.plot(*zip(*line, strict=True), color=WINNER, linewidth=0.8)
    cost = "dollars" if priced else "CPU-seconds"
    axes.set(xscale="log", xlabel=f"{cost} a million predictions", ylabel=metric)
    axes.margins(x=0.25)
    return _svg(figure, "pareto")


def _cost(variant: Variant, priced: bool) -> float:
    return variant.usd if priced and variant.usd is not None else variant.cpu_seconds


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure, to stand inside a page; names inside it are its own."""
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=False)
    text = file.getvalue()
    return text[text.index("<svg") :]
