"""Which hardware a run should go on: every machine, node count and layout, priced and compared.

`plan` is pure: a demand, a catalogue and wishes in, offers out, refused machines with the reason.
An offer is the fastest layout found on so many nodes; limits are held against the slow end of what
the prediction may be wrong by. Knows no files and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cluster.costmodel.constants import CALIBRATED, NINE_IN_TEN, Constants
from cluster.costmodel.layout import Layout
from cluster.costmodel.step_time import Step
from cluster.errors import BerthaError
from cluster.hardware import energy
from cluster.hardware.catalog import Catalogue
from cluster.hardware.price import Price, price
from cluster.hardware.types import Machine, Place
from cluster.planning.demand import Demand
from cluster.planning.placement import Placed, place_on

Objective = Literal["time", "money", "energy"]

MOST_ACCELERATORS = 4096
# Seconds before the first step: a rented machine boots and is set up (assumed), Ray starts
# (measured); texts are encoded once, by all processors (measured: 340,000 tokens/s on one core).
BOOT_SECONDS, RAY_SECONDS = 300.0, 15.0
ENCODED_PER_CORE = 340_000.0


class PlanError(BerthaError):
    """No hardware meets the wishes; the text says the nearest that does not, and the way out."""


@dataclass(frozen=True)
class Wishes:
    """Limits and what to make least. deadline: seconds. budget: dollars. power: watts in all."""

    objective: Objective = "money"
    deadline: float | None = None
    budget: float | None = None
    power: float | None = None
    region: str | None = None


@dataclass(frozen=True)
class Offer:
    """A run on `nodes` machines. seconds: of all, starting included; training: of steps alone.

    kwh and co2_kg: None where the power of the accelerator is not published.
    """

    machine: Machine
    nodes: int
    placed: Placed
    seconds: float
    training: float
    price: Price
    watts: float | None
    kwh: float | None
    co2_kg: float | None

    @property
    def step(self) -> Step:
        """Seconds of a step, by term."""
        return self.placed.step

    @property
    def layout(self) -> Layout:
        """Resolved."""
        return self.placed.layout

    @property
    def accelerators(self) -> int:
        """All of them."""
        return self.nodes * self.machine.count

    @property
    def devices(self) -> int:
        """Workers: one an accelerator, or one a core of it."""
        return self.nodes * self.machine.num_devices

    @property
    def slow(self) -> float:
        """Seconds that nine in ten such runs stay below or near: the interval's far end."""
        return self.seconds * NINE_IN_TEN

    def measure(self, objective: Objective) -> float:
        """What is to be small; infinite where it is not known."""
        values = {"time": self.seconds, "money": self.price.dollars, "energy": self.kwh}
        value = values[objective]
        return float("inf") if value is None else value


@dataclass(frozen=True)
class Refusal:
    """A machine that is not offered, and why."""

    machine: Machine
    reason: str


@dataclass(frozen=True)
class Plan:
    """Offers that meet the wishes, best first: the best of each machine, and all of them.

    front: those that no other beats in time and money at once. without_machine: accelerators that
    train, and that no machine of the catalogue has.
    """

    best: tuple[Offer, ...]
    every: tuple[Offer, ...]
    front: tuple[Offer, ...]
    refused: tuple[Refusal, ...]
    without_machine: tuple[str, ...]


def plan(
    demand: Demand,
    catalogue: Catalogue,
    wishes: Wishes = Wishes(),
    speeds: Mapping[str, float] | None = None,
) -> Plan:
    """Compare all hardware of the catalogue. Raises PlanError where nothing meets the wishes.

    speeds: of accelerators against the model, by name, where a probe knows better.
    """
    every: list[Offer] = []
    best: list[Offer] = []
    refused: list[Refusal] = []
    for machine in catalogue.machines:
        reason = _unfit(machine, demand, wishes)
        if reason:
            refused.append(Refusal(machine, reason))
            continue
        speed = (speeds or {}).get(machine.accelerator.name, 1.0)
        offers = list(offers_of(machine, demand, replace(CALIBRATED, speed=speed)))
        if not offers:
            refused.append(Refusal(machine, _nothing_fits(machine)))
            continue
        meeting = [offer for offer in offers if not broken(offer, wishes)]
        if meeting:
            every += meeting
            best.append(min(meeting, key=lambda o: (o.measure(wishes.objective), o.seconds)))
        else:
            nearest = min(offers, key=lambda o: _excess(o, wishes))
            refused.append(Refusal(machine, broken(nearest, wishes)))
    if not best:
        raise PlanError(_nobody(refused))
    best.sort(key=lambda o: (o.measure(wishes.objective), o.seconds))
    every.sort(key=lambda o: (o.measure(wishes.objective), o.seconds))
    housed = {machine.accelerator.name for machine in catalogue.machines}
    alone = (a.name for a in catalogue.accelerators.values() if a.trains == "yes")
    homeless = tuple(name for name in alone if name not in housed)
    return Plan(tuple(best), tuple(every), tuple(_front(every)), tuple(refused), homeless)


def offers_of(
    machine: Machine, demand: Demand, constants: Constants = CALIBRATED
) -> Iterator[Offer]:
    """The best layout on 1, 2, 4, ... machines, as far as the batch gives every device a sample."""
    nodes, most = 1, machine.available or MOST_ACCELERATORS
    while nodes <= most and nodes * machine.count <= MOST_ACCELERATORS:
        fewer_than_devices = demand.global_batch < nodes * machine.num_devices
        if nodes > 1 and (machine.network is None or fewer_than_devices):
            return
        placed = place_on(Place.of(machine, nodes), demand, constants)
        if placed is not None:
            yield _offer(machine, nodes, placed, demand)
        nodes *= 2


def broken(offer: Offer, wishes: Wishes) -> str:
    """The first limit that an offer's slow end breaks, in words; empty where it breaks none."""
    dollars = offer.price.dollars
    if wishes.objective == "money" and dollars is None:
        return "no price is published; give one with --owned FILE"
    if wishes.objective == "energy" and offer.kwh is None:
        return "its power is not published; give tdp_w with --owned FILE"
    if wishes.deadline is not None and offer.slow > wishes.deadline:
        return f"takes up to {hours(offer.slow)} on {offer.nodes} node(s), past the deadline"
    if wishes.budget is not None:
        if dollars is None:
            return "no price is published, and there is a budget; give one with --owned FILE"
        if dollars * NINE_IN_TEN > wishes.budget:
            return f"costs up to ${dollars * NINE_IN_TEN:,.2f}, above the budget"
    if wishes.power is not None:
        if offer.watts is None:
            return "its power is not published, and there is a power limit; give tdp_w with --owned"
        if offer.watts * offer.nodes > wishes.power:
            return f"draws {offer.watts * offer.nodes / 1000:.1f} kW, above the power limit"
    return ""


def hours(seconds: float) -> str:
    """A duration for a person: 45 s, 12.3 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def _offer(machine: Machine, nodes: int, placed: Placed, demand: Demand) -> Offer:
    step = placed.step
    training = demand.steps * step.total
    start = RAY_SECONDS + (0.0 if machine.ownership else BOOT_SECONDS)
    encoded = (demand.rows or 0) * demand.mean_tokens
    start += encoded / (ENCODED_PER_CORE * max(1, machine.vcpus) * nodes)
    seconds = start + training
    watts = energy.node_watts(machine, step.busy)
    overhead = energy.overhead_of(machine)
    kwh = energy.kilowatt_hours(watts, seconds, overhead * nodes)
    co2 = energy.kilograms_of_co2(kwh, machine.region)
    return Offer(
        machine, nodes, placed, seconds, training, price(machine, nodes, seconds, watts), watts,
        kwh, co2,
    )  # fmt: skip


def _unfit(machine: Machine, demand: Demand, wishes: Wishes) -> str:
    """Why a machine is out of the question, whatever the number of nodes; else empty."""
    accelerator = machine.accelerator
    if wishes.region is not None and machine.region not in ("", wishes.region):
        return f"offered in {machine.region}, not in {wishes.region}"
    if accelerator.missing:
        return f"unknown of {accelerator.name}: {', '.join(accelerator.missing)}"
    if accelerator.trains == "no":
        return f"{accelerator.name} does not train"
    if accelerator.trains == "old":
        return (
            f"{accelerator.name} has only the older environment (Neuron 2.29, torch 2.9); use "
            "Trainium 2 or newer"
        )
    wanted = demand.precision
    if wanted != "auto" and accelerator.peak(wanted) is None:
        return f"{accelerator.name} has no {wanted}; set precision=auto"
    if wanted == "bf16" and accelerator.half_precision == "fp16":
        return f"{accelerator.name} has no fast bf16; set precision=auto or fp16"
    if machine.count > 1 and accelerator.link_rate is None:
        return f"the link between its {machine.count} devices is not published"
    return ""


def _nothing_fits(machine: Machine) -> str:
    device = machine.accelerator.core
    assert device.memory is not None
    gib = device.memory / 2**30
    return f"no layout fits {gib:.0f} GiB a device; lower batch.max_length or use larger devices"


def _excess(offer: Offer, wishes: Wishes) -> float:
    """How far an offer is from its limits: the largest ratio."""
    ratios = [0.0]
    if wishes.deadline is not None:
        ratios.append(offer.slow / wishes.deadline)
    if wishes.budget is not None and offer.price.dollars is not None:
        ratios.append(offer.price.dollars * NINE_IN_TEN / wishes.budget)
    if wishes.power is not None and offer.watts is not None:
        ratios.append(offer.watts * offer.nodes / wishes.power)
    return max(ratios)


def _front(offers: list[Offer]) -> Iterator[Offer]:
    """Offers that no other one beats in time and money at once, fastest first (Pareto)."""
    cheapest = float("inf")
    for offer in sorted(offers, key=lambda o: (o.seconds, o.measure("money"))):
        if offer.measure("money") < cheapest:
            cheapest = offer.measure("money")
            yield offer


def _nobody(refused: list[Refusal]) -> str:
    told = "\n  ".join(f"{each.machine.label}: {each.reason}" for each in refused)
    return f"no hardware meets the wishes:\n  {told}\n  loosen one of them, or give --owned FILE"
