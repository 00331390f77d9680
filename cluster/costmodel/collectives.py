"""Seconds of collectives by the alpha-beta model, inside a node and across nodes.

A message costs its latency and its bytes over a rate (Hockney 1994). An all-reduce of n bytes over
N ranks in a ring takes 2 (N - 1) alpha + 2 (N - 1) / N n / B (Thakur, Rabenseifner & Gropp 2005,
section 4); all-gather and reduce-scatter take half of that. Across nodes it is hierarchical: a
reduce-scatter inside each node, an all-reduce of every device's share across, an all-gather inside.
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
from cluster.hardware.types import PCIE, Topology


def link_rate(topology: Topology, ranks: int, constants: Constants) -> float:
    """Return the bytes/s each way between `ranks` devices of a node in a collective.

    More than two PCIe cards share root ports unless bridges join pairs of them.
    """
    rate = topology.accelerator.link_rate
    if rate is None:
        return math.inf if ranks == 1 else 0.0
    shared = topology.accelerator.link == PCIE and ranks > 2 and not topology.bridged
    return rate * (constants.shared_link if shared else LINK_SHARE)


def network_rate(topology: Topology) -> float:
    """Return the bytes/s of a node in a collective across nodes; 0 where unknown."""
    return (topology.network or 0.0) * NETWORK_SHARE


def all_gather_seconds(
    num_bytes: float, topology: Topology, ranks: int, constants: Constants
) -> float:
    """Return the seconds of an all-gather to `num_bytes` a rank, or a reduce-scatter from them."""
    return all_reduce_seconds(num_bytes, topology, ranks, constants) / 2


def all_reduce_seconds(
    num_bytes: float, topology: Topology, ranks: int, constants: Constants, stride: int = 1
) -> float:
    """Return the seconds of an all-reduce over `ranks` devices, every `stride`-th of the world.

    The `stride` groups side by side run at once and share the links and the node's network.
    """
    near = max(1, min(ranks, topology.devices_per_node // stride))  # ranks of a group in a node
    nodes = -(-ranks // near)
    seconds = 0.0
    # A ring inside the node carries the whole buffer; the links are shared by all groups, so the
    # rate is that of a collective over all their devices. The two halves are latency-bound on
    # small buffers: one latency for each of 2 (near - 1) messages, here counted as 2 near.
    if near > 1:
        ring = 2 * _ring_share(near) * num_bytes
        seconds += ring / link_rate(topology, near * stride, constants) + 2 * near * NEAR_LATENCY
    if nodes > 1:
        # After the reduce-scatter each device of a group sends only its 1/near of the buffer, so a
        # group sends the buffer once a node; groups side by side divide the node's network.
        groups = min(topology.devices_per_node, stride)
        seconds += 2 * _ring_share(nodes) * num_bytes * groups / network_rate(topology)
        seconds += FAR_ROUNDS * math.log2(nodes) * FAR_LATENCY
    return seconds


def send_seconds(
    num_bytes: float, topology: Topology, leaves_node: bool, constants: Constants
) -> float:
    """Return the seconds of one message to the next pipeline rank."""
    if leaves_node:
        share = network_rate(topology) / topology.devices_per_node
        return FAR_LATENCY + num_bytes / share
    return NEAR_LATENCY + num_bytes / link_rate(topology, 2, constants)


def _ring_share(ranks: int) -> float:
    """Return the share of a buffer that a rank sends in one half of an all-reduce."""
    return (ranks - 1) / ranks
