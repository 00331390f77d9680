"""The verdict on a run as lines of a terminal, from the plain value in result.json.

Results of older versions have none; theirs are the bare figures.
"""

import os
import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 96
MAX_CLASSES = 12  # in the summary of a run
MOST_VALUES = 8  # of a column, on a terminal
IN_SHORT = ("f1_micro", "f1_weighted", "mcc", "kappa", "auroc", "average_precision", "spearman")
SIMPLE = {"majority": "commonest answer", "mean": "mean", "bag-of-words": "bag of words"}


def split_figures(
    figures: Mapping[str, float], verdict: Mapping[str, Any]
) -> tuple[dict[str, float], Mapping[str, Any], dict[str, float]]:
    """Return the figures that are shown with intervals, the verdict, and those in short.

    In short are those that few want, but for the one that the run is judged by.
    """
    short = {name for name in IN_SHORT if name != verdict.get("metric")}
    shown = {name: value for name, value in figures.items() if name not in short}
    return shown, verdict, {name: value for name, value in figures.items() if name in short}


def format_figures(
    figures: Mapping[str, float],
    verdict: Mapping[str, Any],
    in_short: Mapping[str, float] | None = None,
) -> list[str]:
    """Format figures of the test rows, with their intervals beside those of the baselines.

    in_short: figures that share a line.
    """
    width = max(map(len, figures), default=0)
    listed = "  ".join(f"{name} {format_number(each)}" for name, each in (in_short or {}).items())
    last = [f"  also {listed}"] if listed else []
    judged = {
        name: each
        for name, each in (verdict.get("figures") or {}).items()
        if "low" in each and name in figures
    }
    if not judged:
        return [f"  {name:<{width}}  {value:.4f}" for name, value in figures.items()] + last
    baselines = verdict.get("baselines") or {}
    others = [(title, baselines[name]) for name, title in SIMPLE.items() if name in baselines]
    own = {name: format_figure(each) for name, each in judged.items()}
    column = max(map(len, ["value (95% interval)", *own.values()]))
    titles = "".join(f"  {title:>16}" for title, _ in others)
    lines = [f"  {'':<{width}}  {'value (95% interval)':<{column}}{titles}"] if titles else []
    for name, text in own.items():
        cells = "".join(
            f"  {format_number(other[name]) if name in other else '':>16}" for _, other in others
        )
        lines.append(f"  {name:<{width}}  {text:<{column}}{cells}".rstrip())
    rest = {name: value for name, value in figures.items() if name not in judged}
    lines += [f"  {name:<{width}}  {format_number(value)}" for name, value in rest.items()]
    return lines + last


def format_classes(per_class: dict[str, dict[str, float]]) -> list[str]:
    """Format the figures of each label; of many labels those with the lowest f1."""
    if not per_class:
        return []
    if len(per_class) > MAX_CLASSES:  # of which those without a row say nothing
        per_class = {name: row for name, row in per_class.items() if row["support"]} or per_class
    left_out = len(per_class) - MAX_CLASSES
    if left_out > 0:
        worst = sorted(per_class.items(), key=lambda each: each[1]["f1"])[:MAX_CLASSES]
        per_class = dict(worst)
    width = max(len(label) for label in per_class)
    head = f"  {'':<{width}}  precision  recall      f1   rows"
    return [
        head,
        *(
            f"  {label:<{width}}  {row['precision']:9.4f}  {row['recall']:6.4f}  "
            f"{row['f1']:6.4f}  {row['support']:5d}"
            for label, row in per_class.items()
        ),
        *([f"  and {left_out} labels with a higher f1"] if left_out > 0 else []),
    ]


def format_slices(verdict: Mapping[str, Any]) -> list[str]:
    """Format the metric for each value of the columns that a run was asked to tell apart."""
    lines: list[str] = []
    for column, values in (verdict.get("slices") or {}).items():
        width = max(len(str(each["value"])) for each in values[:MOST_VALUES])
        lines.append(f"{verdict['metric']} by {column}, the worst first:")
        lines += [
            f"  {each['value']!s:<{width}}  {format_figure(each['figure']):<22}  "
            f"{each['rows']:,} rows"
            for each in values[:MOST_VALUES]
        ]
        if len(values) > MOST_VALUES:
            lines.append(f"  and {len(values) - MOST_VALUES} more in result.json")
    return lines


def format_sentences(verdict: Mapping[str, Any], run: str) -> list[str]:
    """Format what is to be said of a run, and the next command. run: as its user named it."""
    lines: list[str] = []
    for sentence in verdict.get("sentences") or ():
        lines += textwrap.wrap(
            str(sentence), WIDTH, initial_indent="- ", subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    if verdict.get("next"):
        # The run knows its place, and its user a shorter name for it.
        given = run if "://" in run else os.path.abspath(run)
        lines.append(f"next: {verdict['next'].replace(given, run)}")
    return lines


def format_figure(figure: Mapping[str, float]) -> str:
    """Format a figure with its interval, as in `0.932 (0.85 to 0.98)`."""
    low, high = (format_number(figure[name], 2) for name in ("low", "high"))
    return f"{format_number(figure['value'])} ({low} to {high})"


def format_number(value: float, digits: int = 3) -> str:
    """Format a number so that its size can be seen: 0.932, 15.2, 1,520."""
    if abs(value) < 10:
        return f"{value:.{digits}f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"
