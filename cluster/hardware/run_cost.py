"""Dollars, kilowatt-hours and CO2 of machines at work; unknown prices and power stay unknown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.hardware.types import Machine

HOURS_PER_YEAR = 8766.0
HOURS_PER_MONTH = HOURS_PER_YEAR / 12
# Power of a node under load and idle, over the sum of its accelerators' rated power: processors,
# fans and power supplies included. 8 H100 (MLPerf Training v4.0, power), 5,600 W rated, drew 6,846
# W (AC) and 6,692 W (DC) in a run, 1,916 to 2,271 W idle
# (benchmarks/data/bert_energy_measured.csv).
LOAD_POWER = 1.21
IDLE_POWER = 0.37
CLOUD_PUE = 1.15  # AWS states this for 2023, worldwide
# Grams a kWh: US average of EPA's eGRID2022, 823 lb a MWh; elsewhere the world's of Ember for 2023.
US_GRAMS, WORLD_GRAMS = 373.0, 481.0
# Share of spot machines reclaimed within a month: the band that AWS's Spot Instance Advisor shows
# for much of its accelerated hardware, above 20%. Nobody publishes the hourly rate.
RECLAIMED_PER_MONTH = 0.2
# Seconds until a replacement trains: booting and setting up (assumed), Ray's start (measured).
RESTART_SECONDS = 300.0 + 15.0
CHECKPOINT_SECONDS = 10.0  # that training pauses for a checkpoint, at most (assumed)


@dataclass(frozen=True)
class Price:
    """Dollars of a run on demand and on spot machines; None where no price is published.

    spot_seconds: expected wall time on spot machines, interruptions included.
    """

    dollars: float | None
    spot: float | None
    spot_seconds: float | None


def price_run(machine: Machine, nodes: int, seconds: float, watts: float | None) -> Price:
    """Price `nodes` machines for `seconds`, each drawing `watts` (None: not known)."""
    hours = nodes * seconds / 3600
    if machine.ownership is not None:
        hourly = owned_usd_per_hour(machine, watts)
        return Price(None if hourly is None else hourly * hours, None, None)
    on_demand = None if machine.on_demand is None else machine.on_demand * hours
    if machine.spot is None:
        return Price(on_demand, None, None)
    spot_seconds = expected_spot_seconds(seconds, nodes)
    return Price(on_demand, machine.spot * nodes * spot_seconds / 3600, spot_seconds)


def owned_usd_per_hour(machine: Machine, watts: float | None) -> float | None:
    """Return an owned machine's hourly share of its price, and its electricity.

    The price is written off straight-line over the hours that it works. None where the machine is
    not owned, or its power is unknown and electricity costs something.
    """
    own = machine.ownership
    if own is None:
        return None
    hours = own.lifetime_years * HOURS_PER_YEAR * (1 - own.idle_share)
    energy = kilowatt_hours(watts, 3600.0, own.power_overhead)
    if energy is None:
        return None if own.usd_per_kwh else own.purchase_usd / hours
    return own.purchase_usd / hours + energy * own.usd_per_kwh


def node_watts(machine: Machine, busy: float, load_power: float = LOAD_POWER) -> float | None:
    """Return the power of a node whose devices compute a share `busy` of the time."""
    if machine.accelerator.watts is None:
        return None
    rated = machine.count * machine.accelerator.watts
    return rated * (IDLE_POWER + (load_power - IDLE_POWER) * busy)


def kilowatt_hours(watts: float | None, seconds: float, overhead: float = 1.0) -> float | None:
    """Return the energy of `watts` over `seconds`, times the building's overhead."""
    return None if watts is None else watts * seconds * overhead / 3.6e6


def power_overhead(machine: Machine) -> float:
    """Return the PUE of the building where a machine stands."""
    return machine.ownership.power_overhead if machine.ownership else CLOUD_PUE


def kilograms_of_co2(energy: float | None, region: str) -> float | None:
    """Return the CO2 of `energy` kWh at the average intensity of a region's grid."""
    grams = US_GRAMS if region.startswith("us-") else WORLD_GRAMS
    return None if energy is None else energy * grams / 1000


def mean_seconds_between_interruptions(num_nodes: int) -> float:
    """Return the mean seconds between spot interruptions of any of `num_nodes` machines."""
    hourly_rate = -math.log1p(-RECLAIMED_PER_MONTH) / HOURS_PER_MONTH
    return 3600 / (hourly_rate * num_nodes)


def expected_spot_seconds(seconds: float, num_nodes: int) -> float:
    """Return the expected wall time of `seconds` of work on spot machines.

    E = M e^(R/M) (e^((t + d)/M) - 1) T / t for failures with mean time M between them, restart R,
    checkpoints that take d every t seconds (Daly 2006, "A higher order estimate of the optimum
    checkpoint interval", eq. 20 without its approximations); t = sqrt(2 d M) (Young 1974).
    """
    mean = mean_seconds_between_interruptions(num_nodes)
    interval = min(seconds, math.sqrt(2 * CHECKPOINT_SECONDS * mean))
    growth = math.expm1((interval + CHECKPOINT_SECONDS) / mean)
    return mean * math.exp(RESTART_SECONDS / mean) * growth * seconds / interval
