"""Figures of a plan: cost against time, what a step is spent on, scaling to thousands of devices.

Written as SVG. matplotlib is imported only here, and only when figures are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.hardware.types import Machine
from cluster.planning.demand import Demand
from cluster.planning.plan import Offer, Plan, offers_of

INK = "#334155"
SHADES = ("#2563eb", "#0ea5e9", "#14b8a6", "#84cc16", "#eab308", "#f97316", "#ef4444", "#a855f7",
          "#ec4899", "#64748b")  # fmt: skip


def draw(demand: Demand, plan: Plan, directory: Path) -> list[Path]:
    """Draw all three into `directory`. Returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {each.machine.accelerator.name: each.machine for each in reversed(plan.best)}
    return [
        cost_against_time(demand, plan, directory / "cost-time.svg"),
        breakdown(demand, plan.best[:10], directory / "step.svg"),
        scaling(demand, list(wanted.values())[::-1][:6], directory / "scaling.svg"),
    ]


def cost_against_time(demand: Demand, plan: Plan, path: Path) -> Path:
    """Dollars over hours of every offer, and the front that none beats in both."""
    figure, axes = _canvas(5)
    priced = [offer for offer in plan.every if offer.price.dollars is not None]
    kinds = list(dict.fromkeys(offer.machine.accelerator.name for offer in priced))
    for number, kind in enumerate(kinds):
        mine = [offer for offer in priced if offer.machine.accelerator.name == kind]
        axes.scatter(
            [offer.seconds / 3600 for offer in mine],
            [offer.price.dollars or 0.0 for offer in mine],
            s=18, color=SHADES[number % len(SHADES)], label=kind,
        )  # fmt: skip
    front = [offer for offer in plan.front if offer.price.dollars is not None]
    axes.plot(
        [offer.seconds / 3600 for offer in front],
        [offer.price.dollars or 0.0 for offer in front],
        color=INK, linewidth=1, label="neither faster nor cheaper",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="hours", ylabel="dollars, on demand")
    axes.set_title(f"{demand.name}: cost against time (each within a factor {NINE_IN_TEN:.2f})")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, path)


def breakdown(demand: Demand, offers: Sequence[Offer], path: Path) -> Path:
    """Milliseconds of a step by term, a bar an offer."""
    figure, axes = _canvas(0.5 * len(offers) + 1.5)
    names = [f"{offer.nodes} x {offer.machine.name}" for offer in offers]
    left = [0.0] * len(offers)
    for number, field in enumerate(fields(offers[0].step)):
        width = [1000 * getattr(offer.step, field.name) for offer in offers]
        if not any(width):
            continue
        axes.barh(names, width, left=left, color=SHADES[number % len(SHADES)], label=field.name)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds of a step", title=f"{demand.name}: what a step is spent on")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _saved(figure, path)


def scaling(demand: Demand, machines: Sequence[Machine], path: Path) -> Path:
    """Tokens a second over devices, as far as the batch reaches, at most to 4,096."""
    figure, axes = _canvas(5)
    for number, machine in enumerate(machines):
        offers = list(offers_of(machine, demand))
        tokens = demand.global_batch * demand.mean_tokens
        shade = SHADES[number % len(SHADES)]
        axes.plot(
            [offer.devices for offer in offers],
            [tokens / offer.step.total for offer in offers],
            marker="o", markersize=3, color=shade, label=machine.name,
        )  # fmt: skip
        axes.fill_between(
            [offer.devices for offer in offers],
            [tokens / offer.step.total / NINE_IN_TEN for offer in offers],
            [tokens / offer.step.total * NINE_IN_TEN for offer in offers],
            color=shade, alpha=0.12, linewidth=0,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="tokens a second")
    axes.set_title(f"{demand.name}: scaling at {demand.global_batch:,} samples a step")
    axes.legend(fontsize=7)
    return _saved(figure, path)


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, figure.subplots()


def _saved(figure: Figure, path: Path) -> Path:
    """Text stays text, and the same plan gives the same file."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plan"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
