"""Figures of a plan as SVG: cost over time, a step term by term, scaling. Imports matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.hardware.types import Machine
from cluster.planning.plan import HardwarePlan, Offer, make_offers
from cluster.planning.workload import Workload

INK = "#1d2321"
# Apart from each other, and each at least 3:1 against white. Where there are more kinds than
# colours, a kind is a colour and a marker together.
SHADES = ("#1f6fb2", "#b3560f", "#2f7d5f", "#a3271f", "#7a4fa8", "#6b6b1f", "#b0397f", "#4d5a66",
          "#0e7c86", "#8a5a44")  # fmt: skip
MARKERS = "os^Dv"
MINUTE, HOUR, DAY = 60, 3600, 86400
TIMES = {  # seconds: what an axis of time says there
    1: "1 s", 5: "5 s", 20: "20 s", MINUTE: "1 min", 2 * MINUTE: "2 min", 5 * MINUTE: "5 min",
    10 * MINUTE: "10 min", 20 * MINUTE: "20 min", 40 * MINUTE: "40 min", HOUR: "1 h",
    2 * HOUR: "2 h", 4 * HOUR: "4 h", 8 * HOUR: "8 h", 16 * HOUR: "16 h", DAY: "1 day",
    2 * DAY: "2 days", 4 * DAY: "4 days", 7 * DAY: "1 week", 14 * DAY: "2 weeks",
    30 * DAY: "1 month", 90 * DAY: "3 months", 365 * DAY: "1 year", 3650 * DAY: "10 years",
}  # fmt: skip
MOST_TICKS = 9  # of an axis of time
LINE_PIXELS, LETTER_PIXELS = 11, 5.5  # of a name beside a point


def draw_figures(workload: Workload, plan: HardwarePlan, directory: Path) -> list[Path]:
    """Draw all three into `directory` and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {each.machine.accelerator.name: each.machine for each in reversed(plan.best)}
    return [
        draw_cost_over_time(workload, plan, directory / "cost-time.svg"),
        draw_step_breakdown(workload, plan.best[:10], directory / "step.svg"),
        draw_scaling(workload, list(wanted.values())[::-1][:6], directory / "scaling.svg"),
    ]


def draw_cost_over_time(workload: Workload, plan: HardwarePlan, path: Path) -> Path:
    """Draw what every offer costs over how long it takes, and name those on the Pareto front."""
    figure, axes = _new_figure(5.5)
    priced = [offer for offer in plan.offers if offer.price.dollars is not None]
    kinds = dict.fromkeys(offer.machine.accelerator.name for offer in priced)
    for kind, (marker, color) in zip(kinds, _marks(), strict=False):
        mine = [offer for offer in priced if offer.machine.accelerator.name == kind]
        times, costs = zip(*map(_time_and_cost, mine), strict=True)
        axes.scatter(times, costs, s=22, marker=marker, color=color, linewidths=0, label=kind)
    front = [offer for offer in plan.pareto_front if offer.price.dollars is not None]
    front.sort(key=lambda offer: offer.seconds)
    points = list(map(_time_and_cost, front))
    axes.plot(
        *zip(*points, strict=True), color=INK, linewidth=1, label="neither faster nor cheaper"
    )
    axes.set(xscale="log", yscale="log", xlabel="time of the run", ylabel="dollars, on demand")
    axes.set_title(f"{workload.name}: cost against time (each within a factor {NINE_IN_TEN:.2f})")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    _name_points(axes, points, [f"{each.nodes} x {each.machine.name}" for each in front])
    _label_axes(axes)
    return _save_figure(figure, path)


def draw_step_breakdown(workload: Workload, offers: Sequence[Offer], path: Path) -> Path:
    """Draw what a step is spent on, a bar for each offer."""
    figure, axes = _new_figure(0.5 * len(offers) + 1.5)
    places = range(len(offers))
    longest = max(offer.step.total for offer in offers)
    unit, scale = ("seconds", 1.0) if longest >= 2 else ("milliseconds", 1000.0)
    left = [0.0] * len(offers)
    for number, field in enumerate(fields(offers[0].step)):
        width = [scale * getattr(offer.step, field.name) for offer in offers]
        if not any(width):
            continue
        axes.barh(
            places, width, left=left, color=SHADES[number % len(SHADES)], label=field.name,
            edgecolor="white", linewidth=0.6,
        )  # fmt: skip
        left = [a + b for a, b in zip(left, width, strict=True)]
    for place, offer, end in zip(places, offers, left, strict=True):
        axes.text(end, place, f" {_format_step(offer.step.total)}", va="center", fontsize=7)
    axes.margins(x=0.12)
    axes.set_yticks(places, [f"{offer.nodes} x {offer.machine.name}" for offer in offers])
    axes.invert_yaxis()
    axes.set(xlabel=f"{unit} of a step", title=f"{workload.name}: what a step is spent on")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save_figure(figure, path)


def draw_scaling(workload: Workload, machines: Sequence[Machine], path: Path) -> Path:
    """Draw tokens a second over devices, as far as the batch has samples, at most 4,096."""
    figure, axes = _new_figure(5)
    tokens = workload.global_batch * workload.mean_tokens
    for machine, (marker, color) in zip(machines, _marks(), strict=False):
        offers = list(make_offers(machine, workload))
        devices = [offer.devices for offer in offers]
        rates = [tokens / offer.step.total for offer in offers]
        axes.plot(devices, rates, marker=marker, markersize=4, color=color, label=machine.name)
        axes.fill_between(
            devices,
            [rate / NINE_IN_TEN for rate in rates],
            [rate * NINE_IN_TEN for rate in rates],
            color=color, alpha=0.12, linewidth=0,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="devices", ylabel="tokens a second")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_count(value)))
    axes.set_title(f"{workload.name}: scaling at {workload.global_batch:,} samples a step")
    axes.legend(fontsize=7)
    return _save_figure(figure, path)


def _marks() -> Iterator[tuple[str, str]]:
    """Yield markers and colours: neighbours differ in both, and no pair comes twice."""
    for number in range(len(MARKERS) * len(SHADES)):
        turn, shade = divmod(number, len(SHADES))
        yield MARKERS[(number + turn) % len(MARKERS)], SHADES[shade]


def _time_and_cost(offer: Offer) -> tuple[float, float]:
    """Return seconds and dollars."""
    return offer.seconds, offer.price.dollars or 0.0


def _label_axes(axes: Axes) -> None:
    """Say times and money as people do, on logarithmic axes of seconds and dollars."""
    first, last = axes.get_xlim()
    ticks: list[float] = []
    for seconds in TIMES:
        apart = not ticks or math.log(seconds / ticks[-1]) > math.log(last / first) / MOST_TICKS
        if first <= seconds <= last and apart:
            ticks.append(seconds)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: TIMES.get(round(value), "")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_dollars(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_points(axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Name the points of a front that falls to the right, below it, where there are no others."""
    first, last = axes.get_xlim()
    low, high = axes.get_ylim()
    # Room at the left for the names of the fastest, and below for those of the cheapest.
    axes.set_xlim(first * (first / last) ** 0.25, last)
    axes.set_ylim(low * (low / high) ** 0.2, high)
    axes.figure.canvas.draw()  # so that data have places in the picture
    taken: list[tuple[float, float, float]] = []  # left, right and bottom of each name
    for point, name in zip(points, names, strict=True):
        x, y = axes.transData.transform(point)
        right, left = x - 10, x - 10 - LETTER_PIXELS * len(name)
        below = [bottom for begin, end, bottom in taken if begin < right and left < end]
        top = min([y - 6, *below])
        taken.append((left, right, top - LINE_PIXELS))
        axes.annotate(
            name, point, xytext=(-10, top - y), textcoords="offset pixels", fontsize=7,
            color=INK, ha="right", va="top",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.4, "shrinkB": 1},
        )  # fmt: skip
        axes.plot(*point, "o", markersize=7, markerfacecolor="none", markeredgecolor=INK)


def _format_dollars(value: float) -> str:
    return f"${value:,.0f}" if value >= 1 else f"${value:.2g}"


def _format_count(value: float) -> str:
    """Format a number of thousands or millions as 20k or 3M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _format_step(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 2 else f"{1000 * seconds:,.0f} ms"


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save_figure(figure: Figure, path: Path) -> Path:
    """Save with text as text, reproducibly."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plan"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
