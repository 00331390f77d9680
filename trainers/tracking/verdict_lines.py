"""The verdict on a run as lines of a terminal, from the plain value in result.json.

Results of older versions have none; theirs are the bare figures.
"""

import os
import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 96
SIMPLE = {"majority": "commonest answer", "mean": "mean", "bag-of-words": "bag of words"}


def format_figures(figures: Mapping[str, float], verdict: Mapping[str, Any]) -> list[str]:
    """Format figures of the test rows, with their intervals beside those of the baselines."""
    width = max(map(len, figures), default=0)
    judged = {name: each for name, each in (verdict.get("figures") or {}).items() if "low" in each}
    if not judged:
        return [f"  {name:<{width}}  {value:.4f}" for name, value in figures.items()]
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
    return lines + [f"  {name:<{width}}  {format_number(value)}" for name, value in rest.items()]


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
