"""Compare every machine and number of nodes for a training run, each in its fastest layout.

Pure: a workload, a catalog and constraints in, offers and rejected machines out. Limits apply to
the slow end of the prediction's error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from cluster.costmodel.constants import CALIBRATED, NINE_IN_TEN, Constants
from cluster.costmodel.layout import Layout
from cluster.costmodel.layout_search import LayoutCandidate, first_fitting, rank_candidates
from cluster.costmodel.step_time import StepTime
from cluster.errors import BerthaError
from cluster.hardware import run_cost
from cluster.hardware.catalog import Catalog
from cluster.hardware.run_cost import Price, price_run
from cluster.hardware.types import Machine, Topology
from cluster.planning.workload import Workload

Objective = Literal["time", "money", "energy"]

MAX_ACCELERATORS = 4096
# Before the first step a rented machine boots and is set up (assumed), Ray starts (measured), and
# all CPUs tokenize the texts once (measured on one core).
BOOT_SECONDS, RAY_SECONDS = 300.0, 15.0
TOKENIZED_PER_CORE_SECOND = 340_000.0


class PlanError(BerthaError):
    """No hardware meets the constraints; the text says why, machine by machine, and the way out."""


@dataclass(frozen=True)
class Constraints:
    """Limits and an objective. deadline: seconds; budget: dollars; power: watts of all nodes."""

    objective: Objective = "money"
    deadline: float | None = None
    budget: float | None = None
    power: float | None = None
    region: str | None = None


@dataclass(frozen=True)
class Offer:
    """A run on `nodes` machines.

    seconds: the whole run, startup included; training_seconds: its steps. watts, of a node, kwh and
    co2_kg: None where the accelerator's power is not published.
    """

    machine: Machine
    nodes: int
    candidate: LayoutCandidate
    precision: str
    seconds: float
    training_seconds: float
    price: Price
    watts: float | None
    kwh: float | None
    co2_kg: float | None

    @property
    def step(self) -> StepTime:
        """Seconds of a step, term by term."""
        return self.candidate.step

    @property
    def layout(self) -> Layout:
        """The layout, resolved."""
        return self.candidate.layout

    @property
    def accelerators(self) -> int:
        """Number of accelerators on all nodes."""
        return self.nodes * self.machine.count

    @property
    def devices(self) -> int:
        """Number of workers: one for each accelerator, or for each of its cores."""
        return self.nodes * self.machine.num_devices

    @property
    def slow_seconds(self) -> float:
        """Slow end of the interval that holds nine in ten runs."""
        return self.seconds * NINE_IN_TEN

    def objective_value(self, objective: Objective) -> float:
        """Return what `objective` minimizes; infinite where it is unknown."""
        values = {"time": self.seconds, "money": self.price.dollars, "energy": self.kwh}
        value = values[objective]
        return float("inf") if value is None else value


@dataclass(frozen=True)
class RejectedMachine:
    """A machine that no offer is made for, and why."""

    machine: Machine
    reason: str


@dataclass(frozen=True)
class HardwarePlan:
    """Offers that meet the constraints, best first.

    best: the best of each machine. pareto_front: those that no other beats in both time and money.
    machineless: accelerators that can train but are in no machine of the catalog.
    """

    best: tuple[Offer, ...]
    offers: tuple[Offer, ...]
    pareto_front: tuple[Offer, ...]
    rejected: tuple[RejectedMachine, ...]
    machineless: tuple[str, ...]


def plan_hardware(
    workload: Workload,
    catalog: Catalog,
    constraints: Constraints = Constraints(),
    speeds: Mapping[str, float] | None = None,
) -> HardwarePlan:
    """Compare all hardware of the catalog. Raises PlanError where nothing meets the constraints.

    speeds: of accelerators relative to the cost model, by name, from a probe.
    """

    def rank(offer: Offer) -> tuple[float, float]:
        return offer.objective_value(constraints.objective), offer.seconds

    all_offers: list[Offer] = []
    best: list[Offer] = []
    rejected: list[RejectedMachine] = []
    for machine in catalog.machines:
        reason = _reject_reason(machine, workload, constraints)
        if reason:
            rejected.append(RejectedMachine(machine, reason))
            continue
        speed = (speeds or {}).get(machine.accelerator.name, 1.0)
        offers = list(make_offers(machine, workload, replace(CALIBRATED, speed=speed)))
        if not offers:
            rejected.append(RejectedMachine(machine, _no_fit_reason(machine)))
            continue
        meeting = [offer for offer in offers if not find_violation(offer, constraints)]
        if meeting:
            all_offers += meeting
            best.append(min(meeting, key=rank))
        else:
            nearest = min(offers, key=lambda o: _worst_excess(o, constraints))
            rejected.append(RejectedMachine(machine, find_violation(nearest, constraints)))
    if not best:
        raise PlanError(_explain_rejections(rejected))
    best.sort(key=rank)
    all_offers.sort(key=rank)
    front = tuple(_pareto_front(all_offers))
    in_machines = {machine.accelerator.name for machine in catalog.machines}
    trainable = (a.name for a in catalog.accelerators.values() if a.trains == "yes")
    machineless = tuple(name for name in trainable if name not in in_machines)
    return HardwarePlan(tuple(best), tuple(all_offers), front, tuple(rejected), machineless)


def make_offers(
    machine: Machine, workload: Workload, constants: Constants = CALIBRATED
) -> Iterator[Offer]:
    """Yield the best layout on 1, 2, 4, ... machines, while the batch has a sample a device."""
    nodes, max_nodes = 1, machine.available or MAX_ACCELERATORS
    while nodes <= max_nodes and nodes * machine.count <= MAX_ACCELERATORS:
        too_few_samples = workload.global_batch < nodes * machine.num_devices
        if nodes > 1 and (machine.network is None or too_few_samples):
            return
        job = workload.job_on(Topology.from_machine(machine, nodes), constants)
        candidate = first_fitting(rank_candidates(job))
        if candidate is not None:
            yield _make_offer(machine, nodes, candidate, job.precision, workload)
        nodes *= 2


def find_violation(offer: Offer, constraints: Constraints) -> str:
    """Return the first constraint that an offer's slow end breaks, in words, or an empty string."""
    dollars = offer.price.dollars
    if constraints.objective == "money" and dollars is None:
        return "no price is published; give one with --owned FILE"
    if constraints.objective == "energy" and offer.kwh is None:
        return "its power is not published; give tdp_w with --owned FILE"
    if constraints.deadline is not None and offer.slow_seconds > constraints.deadline:
        slow = format_duration(offer.slow_seconds)
        return f"takes up to {slow} on {offer.nodes} node(s), past the deadline"
    if constraints.budget is not None:
        if dollars is None:
            return "no price is published, and there is a budget; give one with --owned FILE"
        if dollars * NINE_IN_TEN > constraints.budget:
            return f"costs up to ${dollars * NINE_IN_TEN:,.2f}, above the budget"
    if constraints.power is not None:
        if offer.watts is None:
            return "its power is not published, and there is a power limit; give tdp_w with --owned"
        if offer.watts * offer.nodes > constraints.power:
            return f"draws {offer.watts * offer.nodes / 1000:.1f} kW, above the power limit"
    return ""


def format_duration(seconds: float) -> str:
    """Format a duration: 45 s, 12.3 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def _make_offer(
    machine: Machine, nodes: int, candidate: LayoutCandidate, precision: str, workload: Workload
) -> Offer:
    step = candidate.step
    training = workload.steps * step.total
    start = RAY_SECONDS + (0.0 if machine.ownership else BOOT_SECONDS)
    tokens = (workload.rows or 0) * workload.mean_tokens
    start += tokens / (TOKENIZED_PER_CORE_SECOND * max(1, machine.vcpus) * nodes)
    seconds = start + training
    watts = run_cost.node_watts(machine, step.busy)
    overhead = run_cost.power_overhead(machine)
    kwh = run_cost.kilowatt_hours(watts, seconds, overhead * nodes)
    co2 = run_cost.kilograms_of_co2(kwh, machine.region)
    price = price_run(machine, nodes, seconds, watts)
    return Offer(
        machine, nodes, candidate, precision, seconds, training, price, watts, kwh, co2
    )  # fmt: skip


def _reject_reason(machine: Machine, workload: Workload, constraints: Constraints) -> str:
    """Return why a machine is unsuitable on any number of nodes, or an empty string."""
    accelerator = machine.accelerator
    if constraints.region is not None and machine.region not in ("", constraints.region):
        return f"offered in {machine.region}, not in {constraints.region}"
    if accelerator.missing:
        return f"unknown of {accelerator.name}: {', '.join(accelerator.missing)}"
    if accelerator.trains == "no":
        return f"{accelerator.name} does not train"
    if accelerator.trains == "old":
        return (
            f"{accelerator.name} has only the older environment (Neuron 2.29, torch 2.9); use "
            "Trainium 2 or newer"
        )
    wanted = workload.precision
    if wanted != "auto" and accelerator.peak_flops(wanted) is None:
        return f"{accelerator.name} has no {wanted}; set precision=auto"
    if wanted == "bf16" and accelerator.half_precision == "fp16":
        return f"{accelerator.name} has no fast bf16; set precision=auto or fp16"
    if machine.count > 1 and accelerator.link_rate is None:
        return f"the link between its {machine.count} devices is not published"
    return ""


def _no_fit_reason(machine: Machine) -> str:
    device = machine.accelerator.core
    assert device.memory is not None
    gib = device.memory / 2**30
    return f"no layout fits {gib:.0f} GiB a device; lower batch.max_length or use larger devices"


def _worst_excess(offer: Offer, constraints: Constraints) -> float:
    """Return the largest ratio of an offer's figures to its limits."""
    ratios = [0.0]
    if constraints.deadline is not None:
        ratios.append(offer.slow_seconds / constraints.deadline)
    if constraints.budget is not None and offer.price.dollars is not None:
        ratios.append(offer.price.dollars * NINE_IN_TEN / constraints.budget)
    if constraints.power is not None and offer.watts is not None:
        ratios.append(offer.watts * offer.nodes / constraints.power)
    return max(ratios)


def _pareto_front(offers: list[Offer]) -> Iterator[Offer]:
    """Yield the offers that no other beats in both time and money, fastest first."""
    cheapest = float("inf")
    for offer in sorted(offers, key=lambda o: (o.seconds, o.objective_value("money"))):
        if offer.objective_value("money") < cheapest:
            cheapest = offer.objective_value("money")
            yield offer


def _explain_rejections(rejected: list[RejectedMachine]) -> str:
    reasons = "\n  ".join(f"{each.machine.label}: {each.reason}" for each in rejected)
    return (
        f"no hardware meets the constraints:\n  {reasons}\n  loosen one of them, or give "
        "--owned FILE"
    )
