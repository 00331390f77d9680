"""Watts, kilowatt-hours and grams of CO2 of machines at work; unknown power stays unknown.

A node draws IDLE of its accelerators' rated power when it waits and BUSY of it when they compute:
processors, fans and power supplies included. Measured on 8 H100 (MLPerf Training v4.0, power). The
building's share (PUE) comes on top. Knows no models and no prices.
"""

from __future__ import annotations

from cluster.hardware.types import Machine

# Of the sum of the accelerators' rated power, 5,600 W: 6,846 W (AC) and 6,692 W (DC) mean in a run;
# 1,916 to 2,271 W idle (benchmarks/data/bert_energy_measured.csv).
BUSY = 1.21
IDLE = 0.37
CLOUD_PUE = 1.15  # AWS states this for 2023, worldwide
# Grams a kWh: US average of EPA's eGRID2022, 823 lb a MWh; elsewhere the world's of Ember for 2023.
US_GRAMS, WORLD_GRAMS = 373.0, 481.0


def node_watts(machine: Machine, busy: float, at_work: float = BUSY) -> float | None:
    """Power of a node whose devices compute a share `busy` of the time; None where unknown."""
    if machine.accelerator.watts is None:
        return None
    rated = machine.count * machine.accelerator.watts
    return rated * (IDLE + (at_work - IDLE) * busy)


def kilowatt_hours(watts: float | None, seconds: float, overhead: float = 1.0) -> float | None:
    """Energy of `watts` over `seconds`, with the building's overhead."""
    return None if watts is None else watts * seconds * overhead / 3.6e6


def overhead_of(machine: Machine) -> float:
    """PUE of the building where a machine stands."""
    return machine.ownership.power_overhead if machine.ownership else CLOUD_PUE


def kilograms_of_co2(energy: float | None, region: str) -> float | None:
    """CO2 of `energy` kWh drawn in a region, by the average intensity of its grid."""
    grams = US_GRAMS if region.startswith("us-") else WORLD_GRAMS
    return None if energy is None else energy * grams / 1000
