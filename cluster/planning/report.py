"""A hardware plan as text and as JSON: all offers, the chosen one and why, what was assumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from cluster.costmodel.constants import NINE_IN_TEN
from cluster.costmodel.step_time import StepTime
from cluster.planning.plan import Constraints, HardwarePlan, Objective, Offer, format_duration
from cluster.planning.probe import Probe
from cluster.planning.serving_cost import ServingCost
from cluster.planning.workload import Workload

GIB = 2**30
MAX_ROWS = 14
SUPERLATIVES = {"time": "fastest", "money": "cheapest", "energy": "most frugal"}
HEADER = (
    f"  {'':4}{'MACHINE':<28}{'NODES':>6} {'ACCELERATORS':<24}{'LAYOUT':<30}"
    f"{'TIME':>10} {'SLOW END':>10} {'$':>10} {'SPOT $':>10} {'kWh':>9} {'kg CO2':>8}"
)


def format_plan(
    workload: Workload, plan: HardwarePlan, constraints: Constraints, pick: int
) -> Iterator[str]:
    """Yield the lines of a plan. pick: number of the chosen row, from 1."""
    yield from _format_workload(workload)
    yield (
        f"considered, {constraints.objective} first, each machine at its best number of nodes; "
        "no other offer is both faster and cheaper than one with *"
    )
    yield HEADER
    for number, offer in enumerate(plan.best[:MAX_ROWS], 1):
        yield _format_row(number, offer, offer in plan.pareto_front, number == pick)
    if len(plan.best) > MAX_ROWS:
        yield f"  and {len(plan.best) - MAX_ROWS} more"
    others = [offer for offer in plan.pareto_front if offer not in plan.best[:MAX_ROWS]]
    if others:
        yield "also neither slower nor dearer than another:"
        yield from (_format_row(0, offer, True, False) for offer in others[:MAX_ROWS])
    if plan.rejected:
        yield "refused:"
        yield from (f"  {each.machine.label:<32}{each.reason}" for each in plan.rejected)
    if plan.machineless:
        yield f"  {', '.join(plan.machineless)}:"
        yield f"  {'':<32}no machine of the catalog has it; describe yours with --owned FILE"
    yield from _format_details(workload, plan.best[pick - 1])
    yield from _explain_pick(workload, plan, constraints, pick)


def _format_details(workload: Workload, offer: Offer) -> Iterator[str]:
    """Yield layout, memory, step and rates of the chosen offer."""
    candidate, step = offer.candidate, offer.step
    tokens_per_second = workload.global_batch * workload.mean_tokens / step.total
    device = offer.machine.accelerator.core
    assert device.memory is not None
    yield f"chosen    {offer.nodes} x {offer.machine.label}: {_format_devices(offer)}"
    cores = offer.machine.accelerator.cores
    core = f"; a device is {device.name}" if cores > 1 else ""
    yield f"layout    {offer.layout}, micro-batches of {candidate.token_budget:,} tokens{core}"
    scaling = " with loss scaling" if offer.precision == "fp16" else ""
    yield f"precision {offer.precision}{scaling}"
    yield f"memory    {candidate.memory / GIB:.1f} of {device.memory / GIB:.1f} GiB a device"
    yield (
        f"step      {1000 * step.total:.1f} ms ({1000 * step.total / NINE_IN_TEN:.1f} to "
        f"{1000 * step.total * NINE_IN_TEN:.1f}), {workload.steps:,} of them: "
        f"{tokens_per_second:,.0f} tokens/s{_format_mfu(workload, offer)}"
    )
    yield "          " + ", ".join(f"{name} {share:.0%}" for name, share in _step_shares(step))
    if offer.price.spot is not None and offer.price.spot_seconds is not None:
        yield (
            f"spot      ${offer.price.spot:,.2f} in {format_duration(offer.price.spot_seconds)} "
            "with the interruptions that 20% of machines reclaimed a month bring"
        )


def _step_shares(step: StepTime) -> list[tuple[str, float]]:
    """Return the terms of a step of at least 0.5%, largest first."""
    parts = [(field.name, getattr(step, field.name) / step.total) for field in fields(step)]
    return sorted((p for p in parts if p[1] >= 0.005), key=lambda p: -p[1])


def _explain_pick(
    workload: Workload, plan: HardwarePlan, constraints: Constraints, pick: int
) -> Iterator[str]:
    """Yield why the chosen offer is chosen, and how certain that is."""
    offer = plan.best[pick - 1]
    limits = _format_constraints(constraints)
    superlative = SUPERLATIVES[constraints.objective]
    first = f"the {superlative} of {len(plan.offers)} offers" if pick == 1 else "your pick"
    yield (
        f"why       {offer.nodes} x {offer.machine.name} is {first}{limits}: "
        f"{format_duration(offer.seconds)}, {_format_dollars(offer.price.dollars)}, "
        f"{_format_kwh(offer.kwh)}."
    )
    fastest = min(plan.offers, key=lambda o: o.seconds)
    if fastest is not offer:
        yield (
            f"          The fastest, {fastest.nodes} x {fastest.machine.name}, takes "
            f"{format_duration(fastest.seconds)} and {_format_dollars(fastest.price.dollars)}."
        )
    runner_up = next((o for o in plan.best if o is not offer), None)
    if runner_up is not None and _is_within_error(offer, runner_up, constraints.objective):
        yield (
            f"          {runner_up.nodes} x {runner_up.machine.name} is within the error of it: "
            "take whichever you can get."
        )
    term, share = _step_shares(offer.step)[0]
    yield f"          A step goes mostly into {term} ({share:.0%})."
    yield (
        f"errors    nine in ten published rows lie within a factor {NINE_IN_TEN:.2f} of their "
        "prediction; `--probe` on the"
    )
    yield "          hardware narrows it. Limits are held against the slow end."


def format_serving(
    services: Sequence[ServingCost], rate: float, target: float, unserved: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the costs of serving `rate` texts/s on each kind of machine.

    unserved: accelerators that are not offered, because serving has no engine for them.
    """
    yield f"serving   {rate:,.0f} texts/s, p95 within {1000 * target:.0f} ms, on demand:"
    yield (
        f"  {'MACHINE':<32}{'BATCH':>6} {'p95 ms':>8} {'texts/s a device':>17} {'DEVICES':>8} "
        f"{'MACHINES':>9} {'$/h':>9} {'$ a million':>12}"
    )
    for each in services:
        yield (
            f"  {each.machine.label:<32}{each.batch:>6} {1000 * each.p95_seconds:>8.1f} "
            f"{each.texts_per_second:>17,.0f} {each.replicas:>8} {each.machines:>9} "
            f"{_format_cell(each.dollars_per_hour, '9.2f')} "
            f"{_format_cell(each.dollars_per_million, '12.3f')}"
        )
    if unserved:
        yield f"  not offered: serving has no engine for {', '.join(unserved)} yet"


def format_probe(workload: Workload, measured: Probe) -> Iterator[str]:
    """Yield how long the run takes on the probed devices, for each number of them.

    The interval is that of a plan without a probe: how much a probe narrows it is not measured.
    """
    for workers in measured.workers:
        devices = measured.fit_devices(workers)
        seconds = workload.steps * devices.predict_step(workload.work_on(devices.topology)).total
        low, high = format_duration(seconds / NINE_IN_TEN), format_duration(seconds * NINE_IN_TEN)
        yield (
            f"here      {workers} x {measured.name} ({measured.kind}): {format_duration(seconds)} "
            f"({low} to {high}), by a probe"
        )


def plan_as_json(workload: Workload, plan: HardwarePlan, pick: int) -> dict[str, Any]:
    """Return the plan as JSON values."""
    return {
        "recipe": workload.name,
        "steps": workload.steps,
        "tokens": workload.total_tokens,
        "parameters": workload.shape.num_parameters,
        "assumed": list(workload.assumed),
        "factor_nine_in_ten": NINE_IN_TEN,
        "chosen": _offer_as_json(plan.best[pick - 1]),
        "offers": [_offer_as_json(offer) for offer in plan.offers],
        "front": [_offer_as_json(offer) for offer in plan.pareto_front],
        "refused": {each.machine.label: each.reason for each in plan.rejected},
    }


def _offer_as_json(offer: Offer) -> dict[str, Any]:
    return {
        "machine": offer.machine.name,
        "region": offer.machine.region,
        "nodes": offer.nodes,
        "devices": offer.devices,
        "accelerators": offer.accelerators,
        "accelerator": offer.machine.accelerator.name,
        "layout": str(offer.layout),
        "precision": offer.precision,
        "token_budget": offer.candidate.token_budget,
        "memory_gib": offer.candidate.memory / GIB,
        "seconds": offer.seconds,
        "step_seconds": offer.step.total,
        "step": {field.name: getattr(offer.step, field.name) for field in fields(offer.step)},
        "usd": offer.price.dollars,
        "spot_usd": offer.price.spot,
        "kwh": offer.kwh,
        "co2_kg": offer.co2_kg,
    }


def _format_workload(workload: Workload) -> Iterator[str]:
    shape = workload.shape
    yield (
        f"recipe    {workload.name}: {shape.num_parameters / 1e6:.0f} M parameters, "
        f"{workload.steps:,} steps of {workload.global_batch:,}, {workload.mean_tokens:.0f} tokens "
        f"a sample: {workload.total_tokens / 1e9:.3g} billion tokens"
    )
    if workload.assumed:
        yield f"assumed   {'; '.join(workload.assumed)}"


def _format_row(number: int, offer: Offer, on_front: bool, chosen: bool) -> str:
    mark = "=>" if chosen else f"{number}" if number else ""
    star = "*" if on_front else " "
    return (
        f"  {mark:>2}{star} {offer.machine.label:<28}{offer.nodes:>6} {_format_devices(offer):<24}"
        f"{offer.layout!s:<30}{format_duration(offer.seconds):>10} "
        f"{format_duration(offer.slow_seconds):>10} "
        f"{_format_cell(offer.price.dollars, '10,.2f')} {_format_cell(offer.price.spot, '10,.2f')} "
        f"{_format_cell(offer.kwh, '9.2f')} {_format_cell(offer.co2_kg, '8.2f')}"
    )


def _format_devices(offer: Offer) -> str:
    return f"{offer.accelerators} x {offer.machine.accelerator.name}"


def _format_mfu(workload: Workload, offer: Offer) -> str:
    """Format the model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B)."""
    peak = offer.machine.accelerator.peak_flops(offer.precision)
    if not peak:
        return ""
    flops = workload.shape.training_flops(
        round(workload.mean_tokens), round(workload.masked_tokens)
    )
    share = flops * workload.global_batch / offer.step.total / offer.accelerators / peak
    return f", MFU {share:.0%}"


def _format_constraints(constraints: Constraints) -> str:
    limits = []
    if constraints.deadline is not None:
        limits.append(f"done within {format_duration(constraints.deadline)}")
    if constraints.budget is not None:
        limits.append(f"below ${constraints.budget:,.0f}")
    if constraints.power is not None:
        limits.append(f"below {constraints.power / 1000:.1f} kW")
    if constraints.region is not None:
        limits.append(f"in {constraints.region}")
    return f" {', '.join(limits)}" if limits else ""


def _is_within_error(one: Offer, other: Offer, objective: Objective) -> bool:
    return other.objective_value(objective) <= one.objective_value(objective) * NINE_IN_TEN


def _format_cell(value: float | None, form: str) -> str:
    width = int(form.split(".")[0].rstrip(","))
    return "?".rjust(width) if value is None else format(value, form)


def _format_dollars(value: float | None) -> str:
    return "at a price that is not published" if value is None else f"${value:,.2f}"


def _format_kwh(value: float | None) -> str:
    return "power not published" if value is None else f"{value:,.2f} kWh"
