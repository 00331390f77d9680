"""Power, prices and spot interruptions by hand."""

import math
from dataclasses import replace

import pytest

from cluster.hardware import catalog, run_cost
from cluster.hardware.run_cost import (
    HOURS_PER_YEAR,
    RESTART_SECONDS,
    expected_spot_seconds,
    mean_seconds_between_interruptions,
    owned_usd_per_hour,
    price_run,
)
from cluster.hardware.types import Machine, Ownership

A100 = catalog.load_catalog().get_accelerator("A100-SXM4-80GB")


def test_power_by_what_is_busy() -> None:
    node = Machine("n", A100, 8, None, on_demand=32.0, spot=10.0)
    assert run_cost.node_watts(node, 1.0) == pytest.approx(8 * 400 * run_cost.LOAD_POWER)
    assert run_cost.node_watts(node, 0.0) == pytest.approx(8 * 400 * run_cost.IDLE_POWER)
    assert run_cost.node_watts(replace(node, accelerator=replace(A100, watts=None)), 1.0) is None
    assert run_cost.kilowatt_hours(1000.0, 7200.0, 1.5) == pytest.approx(3.0)
    assert run_cost.kilowatt_hours(None, 1.0) is None
    assert run_cost.kilograms_of_co2(10.0, "us-east-1") == pytest.approx(3.73)


def test_prices_by_hand() -> None:
    rented = Machine("n", A100, 8, None, on_demand=32.0, spot=10.0)
    paid = price_run(rented, 2, 5400.0, 3000.0)
    assert paid.dollars == pytest.approx(96.0)
    assert paid.spot is not None and paid.spot_seconds is not None
    assert paid.spot == pytest.approx(20 * paid.spot_seconds / 3600)
    own = Ownership(40_000, 4, 0.5, 0.30, 1.2)
    box = replace(rented, ownership=own)
    an_hour = 40_000 / (4 * HOURS_PER_YEAR * 0.5) + 3.0 * 1.2 * 0.30
    assert owned_usd_per_hour(box, 3000.0) == pytest.approx(an_hour)
    assert price_run(box, 2, 5400.0, 3000.0).dollars == pytest.approx(3 * an_hour)
    assert price_run(box, 2, 5400.0, None).dollars is None
    assert price_run(replace(rented, on_demand=None, spot=None), 1, 1.0, None).dollars is None


def test_interruptions_cost_little_on_few_machines_and_much_on_many() -> None:
    day = 86400.0
    assert expected_spot_seconds(60.0, 1) < 75
    few, many = expected_spot_seconds(day, 1), expected_spot_seconds(day, 512)
    assert day < few < 1.01 * day
    assert 1.03 * day < many < 1.2 * day
    # First order: checkpoints, half an interval lost, and a restart, for each interruption.
    mean = mean_seconds_between_interruptions(64)
    interval = math.sqrt(2 * 10 * mean)
    first_order = day * (1 + 10 / interval + (RESTART_SECONDS + interval / 2) / mean)
    assert expected_spot_seconds(day, 64) == pytest.approx(first_order, rel=0.002)
