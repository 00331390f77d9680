"""Seconds of exchanges between devices, by the alpha-beta model, inside a node and across.

A message costs its latency and its bytes over a rate (Hockney 1994). An all-reduce of n bytes over
N ranks in a ring takes 2 (N - 1) alpha + 2 (N - 1) / N n / B (Thakur, Rabenseifner & Gropp 2005,
section 4); gather and scatter half of that. Across nodes it is hierarchical: scattered inside each
node, reduced across by every device its share, gathered again. Knows no models.
"""

from __future__ import annotations

import math

from cluster.costmodel.constants import (
    FAR_LATENCY,
    FAR_ROUNDS,
    LINK_SHARE,
    NEAR_LATENCY,
    NETWORK_SHARE,
    Constants,
)
from cluster.hardware.types import PCIE, Place


def link_rate(place: Place, ranks: int, constants: Constants) -> float:
    """Bytes/s each way between `ranks` devices of a node, as a collective sees it.

    More than two PCIe cards share roots unless bridges join them.
    """
    rate = place.accelerator.link_rate
    if rate is None:
        return math.inf if ranks == 1 else 0.0
    shared = place.accelerator.link == PCIE and ranks > 2 and not place.bridged
    return rate * (constants.shared_link if shared else LINK_SHARE)


def network_rate(place: Place) -> float:
    """Bytes/s of a node's cards in a collective across nodes; 0 where unknown."""
    return (place.network or 0.0) * NETWORK_SHARE


def all_reduce(num_bytes: float, place: Place, ranks: int, constants: Constants) -> float:
    """Seconds to add up `num_bytes` over `ranks` devices, consecutive ones, node after node."""
    return across(num_bytes, place, ranks, 1, constants)


def gather(num_bytes: float, place: Place, ranks: int, constants: Constants) -> float:
    """Seconds until each of `ranks` has all `num_bytes`; also of a reduce-scatter."""
    return all_reduce(num_bytes, place, ranks, constants) / 2


def across(num_bytes: float, place: Place, ranks: int, apart: int, constants: Constants) -> float:
    """All-reduce of `num_bytes` over `ranks` devices that stand `apart` ranks from one another.

    As many such groups as fit beside each other share the links and the node's network cards.
    """
    near = max(1, min(ranks, place.devices_per_node // apart))
    nodes = -(-ranks // near)
    seconds = 0.0
    if near > 1:
        ring = 2 * _ring(near) * num_bytes
        seconds += ring / link_rate(place, near * apart, constants) + 2 * near * NEAR_LATENCY
    if nodes > 1:
        beside = min(place.devices_per_node, apart)
        seconds += 2 * _ring(nodes) * num_bytes * beside / network_rate(place)
        seconds += FAR_ROUNDS * math.log2(nodes) * FAR_LATENCY
    return seconds


def send(num_bytes: float, place: Place, leaves_node: bool, constants: Constants) -> float:
    """Seconds of one message to the next pipeline rank."""
    if leaves_node:
        share = network_rate(place) / place.devices_per_node
        return FAR_LATENCY + num_bytes / share
    return NEAR_LATENCY + num_bytes / link_rate(place, 2, constants)


def _ring(ranks: int) -> float:
    """Share of a buffer that a rank sends in one half of an all-reduce."""
    return (ranks - 1) / ranks
