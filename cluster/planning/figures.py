"""Figures of a plan as SVG: cost over time, a step term by term, scaling. Imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.hardware.types import Machine
from cluster.planning.plan import HardwarePlan, Offer, make_offers
from cluster.planning.workload import Workload

INK = "#334155"
SHADES = ("#2563eb", "#0ea5e9", "#14b8a6", "#84cc16", "#eab308", "#f97316", "#ef4444", "#a855f7",
          "#ec4899", "#64748b")  # fmt: skip


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
    """Draw dollars over hours of every offer, and their Pareto front."""
    figure, axes = _new_figure(5)
    priced = [offer for offer in plan.offers if offer.price.dollars is not None]
    kinds = list(dict.fromkeys(offer.machine.accelerator.name for offer in priced))
    for number, kind in enumerate(kinds):
        mine = [offer for offer in priced if offer.machine.accelerator.name == kind]
        axes.scatter(
            [offer.seconds / 3600 for offer in mine],
            [offer.price.dollars or 0.0 for offer in mine],
            s=18, color=SHADES[number % len(SHADES)], label=kind,
        )  # fmt: skip
    front = [offer for offer in plan.pareto_front if offer.price.dollars is not None]
    axes.plot(
        [offer.seconds / 3600 for offer in front],
        [offer.price.dollars or 0.0 for offer in front],
        color=INK, linewidth=1, label="neither faster nor cheaper",
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="hours", ylabel="dollars, on demand")
    axes.set_title(f"{workload.name}: cost against time (each within a factor {NINE_IN_TEN:.2f})")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save_figure(figure, path)


def draw_step_breakdown(workload: Workload, offers: Sequence[Offer], path: Path) -> Path:
    """Draw the milliseconds of a step by term, a bar for each offer."""
    figure, axes = _new_figure(0.5 * len(offers) + 1.5)
    names = [f"{offer.nodes} x {offer.machine.name}" for offer in offers]
    left = [0.0] * len(offers)
    for number, field in enumerate(fields(offers[0].step)):
        width = [1000 * getattr(offer.step, field.name) for offer in offers]
        if not any(width):
            continue
        axes.barh(names, width, left=left, color=SHADES[number % len(SHADES)], label=field.name)
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds of a step", title=f"{workload.name}: what a step is spent on")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return _save_figure(figure, path)


def draw_scaling(workload: Workload, machines: Sequence[Machine], path: Path) -> Path:
    """Draw tokens a second over devices, as far as the batch has samples, at most 4,096."""
    figure, axes = _new_figure(5)
    for number, machine in enumerate(machines):
        offers = list(make_offers(machine, workload))
        tokens = workload.global_batch * workload.mean_tokens
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
    axes.set_title(f"{workload.name}: scaling at {workload.global_batch:,} samples a step")
    axes.legend(fontsize=7)
    return _save_figure(figure, path)


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    return figure, figure.subplots()


def _save_figure(figure: Figure, path: Path) -> Path:
    """Save with text as text, reproducibly."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plan"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
