"""Dollars of machines over time: rented, on the spot market, or owned. Knows no models."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.hardware.energy import kilowatt_hours
from cluster.hardware.spot_interruptions import expected_seconds
from cluster.hardware.types import Machine

HOURS_A_YEAR = 8766.0


@dataclass(frozen=True)
class Price:
    """Dollars of a run; None where nobody publishes a price. spot: interruptions expected in."""

    dollars: float | None
    spot: float | None
    spot_seconds: float | None


def price(machine: Machine, nodes: int, seconds: float, watts: float | None) -> Price:
    """Dollars of `nodes` machines for `seconds`, each drawing `watts` (None: not known)."""
    owned = owned_an_hour(machine, watts)
    hours = nodes * seconds / 3600
    if machine.ownership is not None:
        return Price(None if owned is None else owned * hours, None, None)
    rented = None if machine.on_demand is None else machine.on_demand * hours
    if machine.spot is None:
        return Price(rented, None, None)
    longer = expected_seconds(seconds, nodes)
    return Price(rented, machine.spot * nodes * longer / 3600, longer)


def owned_an_hour(machine: Machine, watts: float | None) -> float | None:
    """Dollars of an hour of an owned machine: its share of the price, and its electricity.

    The price is spread over the hours that it works in its life, straight-line. None where the
    machine is not owned, or its power not known and electricity costs something.
    """
    own = machine.ownership
    if own is None:
        return None
    worked = own.lifetime_years * HOURS_A_YEAR * (1 - own.idle_share)
    energy = kilowatt_hours(watts, 3600.0, own.power_overhead)
    if energy is None:
        return None if own.usd_per_kwh else own.purchase_usd / worked
    return own.purchase_usd / worked + energy * own.usd_per_kwh
