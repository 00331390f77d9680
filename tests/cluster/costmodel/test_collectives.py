"""Exchanges by hand: the formulas of rings, inside a node and across."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.costmodel.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    link_rate,
    send_seconds,
)
from cluster.costmodel.constants import (
    CALIBRATED,
    FAR_LATENCY,
    FAR_ROUNDS,
    LINK_SHARE,
    NEAR_LATENCY,
    NETWORK_SHARE,
)
from cluster.hardware import catalog
from cluster.hardware.types import Topology

A100 = catalog.load_catalog().get_accelerator("A100-SXM4-80GB")
L40 = catalog.load_catalog().get_accelerator("L40")
NODES = Topology(A100, 8, 4, 200e9)


def test_inside_a_node_it_is_a_ring() -> None:
    by_hand = 2 * 7 / 8 * 1e9 / (300e9 * LINK_SHARE) + 2 * 8 * NEAR_LATENCY
    assert all_reduce_seconds(1e9, NODES, 8, CALIBRATED) == pytest.approx(by_hand)
    assert all_gather_seconds(1e9, NODES, 8, CALIBRATED) == pytest.approx(by_hand / 2)


def test_across_nodes_the_cards_carry_it_once() -> None:
    inside = all_reduce_seconds(1e9, NODES, 8, CALIBRATED)
    far = 2 * 3 / 4 * 1e9 / (200e9 * NETWORK_SHARE) + FAR_ROUNDS * 2 * FAR_LATENCY
    assert all_reduce_seconds(1e9, NODES, 32, CALIBRATED) == pytest.approx(inside + far)


def test_groups_beside_each_other_share_the_cards() -> None:
    one = all_reduce_seconds(1e9, replace(NODES, devices_per_node=8), 4, CALIBRATED, stride=8)
    by_hand = 2 * 3 / 4 * 1e9 * 8 / (200e9 * NETWORK_SHARE) + FAR_ROUNDS * 2 * FAR_LATENCY
    assert one == pytest.approx(by_hand)


def test_one_device_exchanges_nothing() -> None:
    assert all_reduce_seconds(1e9, NODES, 1, CALIBRATED) == 0


def test_cards_share_roots_unless_few_or_bridged() -> None:
    crowded = Topology(L40, 8, 1, None)
    assert link_rate(crowded, 8, CALIBRATED) == pytest.approx(31e9 * CALIBRATED.shared_link)
    assert link_rate(crowded, 2, CALIBRATED) == pytest.approx(31e9 * LINK_SHARE)
    bridged = replace(crowded, bridged=True)
    assert link_rate(bridged, 8, CALIBRATED) == pytest.approx(31e9 * LINK_SHARE)


def test_a_message_pays_its_latency() -> None:
    near = send_seconds(0.0, NODES, leaves_node=False, constants=CALIBRATED)
    assert near == NEAR_LATENCY
    assert send_seconds(0.0, NODES, leaves_node=True, constants=CALIBRATED) == FAR_LATENCY


@given(st.floats(1, 1e12), st.integers(0, 12))
def test_more_ranks_and_more_bytes_never_take_less(num_bytes: float, doubling: int) -> None:
    topology = Topology(A100, 8, 1024, 200e9)
    ranks = 2**doubling
    seconds = all_reduce_seconds(num_bytes, topology, ranks, CALIBRATED)
    assert math.isfinite(seconds)
    assert all_reduce_seconds(2 * num_bytes, topology, ranks, CALIBRATED) >= seconds
    assert all_reduce_seconds(num_bytes, topology, 2 * ranks, CALIBRATED) > seconds
