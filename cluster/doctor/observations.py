"""What the doctor saw of a cluster, as plain values: nodes, clocks, who reaches whom, links.

Seen by doctor/examination.py, judged by doctor/diagnosis.py. Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.doctor.allreduce import Link
from cluster.doctor.node_facts import Vitals

# What Ray calls a device of each kind; trainers/distributed/device.py has the same names.
RESOURCES: Mapping[str, str] = {
    "cpu": "CPU",
    "cuda": "GPU",
    "neuron": "neuron_cores",
    "tpu": "TPU",
}


@dataclass(frozen=True)
class Node:
    """A node as Ray knows it. name: its host's, with the address where two hosts share one."""

    id: str
    name: str
    address: str
    is_head: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)

    def devices(self, kind: str) -> int:
        """Devices of a kind that Ray counts here."""
        return int(self.resources.get(RESOURCES[kind], 0))


@dataclass(frozen=True)
class Clock:
    """Seconds that a node's clock is ahead of the asker's, known to within half a round trip."""

    ahead: float
    within: float


@dataclass(frozen=True)
class Observed:
    """A cluster as it was found. Nodes are named in all mappings by `Node.name`.

    gone: nodes that Ray has given up. silent: why a node did not answer at all. unreached: (from,
    to) and why. unwritten: nodes that could not write to the storage, and why. unread: (reader,
    writer) and why. door: of the dashboard, where it lets in who has no token. waiting: nodes whose
    devices are held by others, so that their links were not timed.
    """

    nodes: tuple[Node, ...]
    gone: tuple[Node, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)
    vitals: Mapping[str, Vitals] = field(default_factory=dict)
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    unreached: Mapping[tuple[str, str], str] = field(default_factory=dict)
    unwritten: Mapping[str, str] = field(default_factory=dict)
    unread: Mapping[tuple[str, str], str] = field(default_factory=dict)
    door: str | None = None
    links: tuple[Link, ...] = ()
    waiting: tuple[str, ...] = ()
