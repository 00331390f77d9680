"""What the doctor observed of a cluster, as plain values: nodes, clocks, connections, links."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cluster.doctor.allreduce import Link
from cluster.doctor.node_facts import NodeFacts
from cluster.spec import ClusterSpec, DeviceKind

# Ray's resource name of each kind of device; the same names as in trainers/distributed/device.py.
RESOURCES: Mapping[str, str] = {
    "cpu": "CPU", "cuda": "GPU", "neuron": "neuron_cores", "tpu": "TPU",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A node as Ray knows it. name: its host name, with the address where two hosts share one."""

    id: str
    name: str
    address: str
    is_head: bool = False
    resources: Mapping[str, float] = field(default_factory=dict)

    def count_devices(self, kind: str) -> int:
        """Return the number of devices of a kind that Ray counts on this node."""
        return int(self.resources.get(RESOURCES[kind], 0))


@dataclass(frozen=True)
class ClockReading:
    """Seconds that a node's clock is ahead of the caller's, accurate to half a round trip."""

    ahead: float
    within: float


@dataclass(frozen=True)
class Observations:
    """Everything observed of a cluster. All mappings name nodes by `Node.name`.

    dead_nodes: nodes that Ray has declared dead. unresponsive, write_errors: node -> reason.
    unreachable: (from, to) -> reason. read_errors: (reader, writer) -> reason. open_dashboard: the
    address of a dashboard that serves requests without a token. busy_nodes: nodes whose devices
    others hold, so their links were not timed.
    """

    nodes: tuple[Node, ...]
    dead_nodes: tuple[Node, ...] = ()
    unresponsive: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, NodeFacts] = field(default_factory=dict)
    clocks: Mapping[str, ClockReading] = field(default_factory=dict)
    unreachable: Mapping[tuple[str, str], str] = field(default_factory=dict)
    write_errors: Mapping[str, str] = field(default_factory=dict)
    read_errors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    open_dashboard: str | None = None
    links: tuple[Link, ...] = ()
    busy_nodes: tuple[str, ...] = ()


def device_kind(cluster: ClusterSpec, nodes: Sequence[Node]) -> DeviceKind:
    """Return the kind of device that trains: of `auto`, cuda where Ray counts a GPU."""
    is_auto = cluster.metadata.accelerator == "auto"
    has_gpu = any(node.count_devices("cuda") for node in nodes)
    return "cuda" if is_auto and has_gpu else cluster.device_kind
