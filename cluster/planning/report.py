"""A plan in words and columns: what was considered, what was chosen and why, what it assumes.

Pure: offers in, lines out. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.costmodel.step_time import Step
from cluster.planning.demand import Demand
from cluster.planning.plan import Objective, Offer, Plan, Wishes, hours
from cluster.planning.serving_cost import Service

GIB = 2**30
SHOWN = 14
LEAST = {"time": "fastest", "money": "cheapest", "energy": "most frugal"}
HEADER = (
    f"  {'':4}{'MACHINE':<28}{'NODES':>6} {'ACCELERATORS':<24}{'LAYOUT':<30}"
    f"{'TIME':>10} {'SLOW END':>10} {'$':>10} {'SPOT $':>10} {'kWh':>9} {'kg CO2':>8}"
)


def lines(demand: Demand, plan: Plan, wishes: Wishes, pick: int) -> Iterator[str]:
    """All that `python -m cluster plan` prints. pick: which row is chosen, 1 the first."""
    yield from _of_demand(demand)
    yield (
        f"considered, {wishes.objective} first, each machine at its best number of nodes; no other "
        "offer is both faster and cheaper than one with *"
    )
    yield HEADER
    for number, offer in enumerate(plan.best[:SHOWN], 1):
        yield _row(number, offer, offer in plan.front, number == pick)
    if len(plan.best) > SHOWN:
        yield f"  and {len(plan.best) - SHOWN} more"
    others = [offer for offer in plan.front if offer not in plan.best[:SHOWN]]
    if others:
        yield "also neither slower nor dearer than another:"
        yield from (_row(0, offer, True, False) for offer in others[:SHOWN])
    if plan.refused:
        yield "refused:"
        yield from (f"  {each.machine.label:<32}{each.reason}" for each in plan.refused)
    if plan.without_machine:
        yield f"  {', '.join(plan.without_machine)}:"
        yield f"  {'':<32}no machine of the catalogue has it; describe yours with --owned FILE"
    yield from details(demand, plan.best[pick - 1])
    yield from why(demand, plan, wishes, pick)


def details(demand: Demand, offer: Offer) -> Iterator[str]:
    """The chosen offer in full: layout, memory, step, rates."""
    placed, step = offer.placed, offer.step
    total = demand.global_batch * demand.mean_tokens / step.total
    device = offer.machine.accelerator.core
    assert device.memory is not None
    held = device.memory / GIB
    yield f"chosen    {offer.nodes} x {offer.machine.label}: {_devices(offer)}"
    cores = offer.machine.accelerator.cores
    each = f"; a device is {device.name}" if cores > 1 else ""
    yield f"layout    {offer.layout}, micro-batches of {placed.token_budget:,} tokens{each}"
    scaling = " with loss scaling" if placed.precision == "fp16" else ""
    yield f"precision {placed.precision}{scaling}"
    yield f"memory    {placed.memory / GIB:.1f} of {held:.1f} GiB a device"
    yield (
        f"step      {1000 * step.total:.1f} ms ({1000 * step.total / NINE_IN_TEN:.1f} to "
        f"{1000 * step.total * NINE_IN_TEN:.1f}), {demand.steps:,} of them: "
        f"{total:,.0f} tokens/s{_mfu(demand, offer)}"
    )
    yield "          " + ", ".join(f"{name} {share:.0%}" for name, share in breakdown(step))
    if offer.price.spot is not None and offer.price.spot_seconds is not None:
        yield (
            f"spot      ${offer.price.spot:,.2f} in {hours(offer.price.spot_seconds)} with the "
            "interruptions that 20% of machines reclaimed a month bring"
        )


def breakdown(step: Step) -> list[tuple[str, float]]:
    """Shares of a step that are worth a word, largest first."""
    parts = [(field.name, getattr(step, field.name) / step.total) for field in fields(step)]
    return sorted((p for p in parts if p[1] >= 0.005), key=lambda p: -p[1])


def why(demand: Demand, plan: Plan, wishes: Wishes, pick: int) -> Iterator[str]:
    """Which hardware to choose, in plain words, and what the words rest on."""
    offer = plan.best[pick - 1]
    limits = _limits(wishes)
    best = pick == 1
    first = f"the {LEAST[wishes.objective]} of {len(plan.every)} offers" if best else "your pick"
    yield (
        f"why       {offer.nodes} x {offer.machine.name} is {first}{limits}: "
        f"{hours(offer.seconds)}, {_dollars(offer.price.dollars)}, {_kwh(offer.kwh)}."
    )
    fastest = min(plan.every, key=lambda o: o.seconds)
    if fastest is not offer:
        yield (
            f"          The fastest, {fastest.nodes} x {fastest.machine.name}, takes "
            f"{hours(fastest.seconds)} and {_dollars(fastest.price.dollars)}."
        )
    following = next((o for o in plan.best if o is not offer), None)
    if following is not None and _within(offer, following, wishes.objective):
        yield (
            f"          {following.nodes} x {following.machine.name} is within the error of it: "
            "take whichever you can get."
        )
    term, share = breakdown(offer.step)[0]
    yield f"          A step goes mostly into {term} ({share:.0%})."
    yield (
        f"errors    nine in ten published rows lie within a factor {NINE_IN_TEN:.2f} of their "
        "prediction; `--probe` on the"
    )
    yield "          hardware narrows it. Limits are held against the slow end."


def service_lines(services: Sequence[Service], rate: float, target: float) -> Iterator[str]:
    """Serving on each kind of machine, the cheapest first."""
    yield f"serving   {rate:,.0f} texts/s, p95 within {1000 * target:.0f} ms, on demand:"
    yield (
        f"  {'MACHINE':<32}{'BATCH':>6} {'p95 ms':>8} {'texts/s a device':>17} {'DEVICES':>8} "
        f"{'MACHINES':>9} {'$/h':>9} {'$ a million':>12}"
    )
    for each in services:
        yield (
            f"  {each.machine.label:<32}{each.batch:>6} {1000 * each.p95_seconds:>8.1f} "
            f"{each.texts_per_second:>17,.0f} {each.replicas:>8} {each.machines:>9} "
            f"{_cell(each.dollars_per_hour, '9.2f')} {_cell(each.dollars_per_million, '12.3f')}"
        )


def as_json(demand: Demand, plan: Plan, pick: int) -> dict[str, Any]:
    """The plan for programs."""
    return {
        "recipe": demand.name,
        "steps": demand.steps,
        "tokens": demand.tokens,
        "parameters": demand.shape.num_parameters,
        "assumed": list(demand.assumed),
        "factor_nine_in_ten": NINE_IN_TEN,
        "chosen": _record(plan.best[pick - 1]),
        "offers": [_record(offer) for offer in plan.every],
        "front": [_record(offer) for offer in plan.front],
        "refused": {each.machine.label: each.reason for each in plan.refused},
    }


def _record(offer: Offer) -> dict[str, Any]:
    return {
        "machine": offer.machine.name,
        "region": offer.machine.region,
        "nodes": offer.nodes,
        "devices": offer.devices,
        "accelerators": offer.accelerators,
        "accelerator": offer.machine.accelerator.name,
        "layout": str(offer.layout),
        "precision": offer.placed.precision,
        "token_budget": offer.placed.token_budget,
        "memory_gib": offer.placed.memory / GIB,
        "seconds": offer.seconds,
        "step_seconds": offer.step.total,
        "step": {field.name: getattr(offer.step, field.name) for field in fields(offer.step)},
        "usd": offer.price.dollars,
        "spot_usd": offer.price.spot,
        "kwh": offer.kwh,
        "co2_kg": offer.co2_kg,
    }


def _of_demand(demand: Demand) -> Iterator[str]:
    shape = demand.shape
    yield (
        f"recipe    {demand.name}: {shape.num_parameters / 1e6:.0f} M parameters, "
        f"{demand.steps:,} steps of {demand.global_batch:,}, {demand.mean_tokens:.0f} tokens a "
        f"sample: {demand.tokens / 1e9:.3g} billion tokens"
    )
    if demand.assumed:
        yield f"assumed   {'; '.join(demand.assumed)}"


def _row(number: int, offer: Offer, on_front: bool, chosen: bool) -> str:
    mark = "=>" if chosen else f"{number}" if number else ""
    star = "*" if on_front else " "
    return (
        f"  {mark:>2}{star} {offer.machine.label:<28}{offer.nodes:>6} {_devices(offer):<24}"
        f"{offer.layout!s:<30}{hours(offer.seconds):>10} {hours(offer.slow):>10} "
        f"{_cell(offer.price.dollars, '10,.2f')} {_cell(offer.price.spot, '10,.2f')} "
        f"{_cell(offer.kwh, '9.2f')} {_cell(offer.co2_kg, '8.2f')}"
    )


def _devices(offer: Offer) -> str:
    return f"{offer.accelerators} x {offer.machine.accelerator.name}"


def _mfu(demand: Demand, offer: Offer) -> str:
    """Model FLOPs utilisation: PaLM, arXiv 2204.02311, appendix B, with our own FLOPs."""
    peak = offer.machine.accelerator.peak(offer.placed.precision)
    if not peak:
        return ""
    flops = demand.shape.training_flops(round(demand.mean_tokens), round(demand.masked))
    share = flops * demand.global_batch / offer.step.total / offer.accelerators / peak
    return f", MFU {share:.0%}"


def _limits(wishes: Wishes) -> str:
    told = []
    if wishes.deadline is not None:
        told.append(f"done within {hours(wishes.deadline)}")
    if wishes.budget is not None:
        told.append(f"below ${wishes.budget:,.0f}")
    if wishes.power is not None:
        told.append(f"below {wishes.power / 1000:.1f} kW")
    if wishes.region is not None:
        told.append(f"in {wishes.region}")
    return f" {', '.join(told)}" if told else ""


def _within(one: Offer, other: Offer, objective: Objective) -> bool:
    return other.measure(objective) <= one.measure(objective) * NINE_IN_TEN


def _cell(value: float | None, form: str) -> str:
    width = int(form.split(".")[0].rstrip(","))
    return "?".rjust(width) if value is None else format(value, form)


def _dollars(value: float | None) -> str:
    return "at a price that is not published" if value is None else f"${value:,.2f}"


def _kwh(value: float | None) -> str:
    return "power not published" if value is None else f"{value:,.2f} kWh"
