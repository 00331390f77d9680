"""A healthy cluster as the doctor sees it, and ways to make it ill."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from cluster.doctor.allreduce import Link
from cluster.doctor.diagnosis import ExpectedCluster
from cluster.doctor.node_facts import DeviceList, DiskSpace, NetworkInterface, NodeFacts
from cluster.doctor.observations import ClockReading, Node, Observations
from cluster.spec import ClusterMetadata, ClusterSpec

GIB = 1 << 30
NAMES = ("head", "w1", "w2", "w3")
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "Bertha's code": "abc"}


def node_facts(name: str, number: int, **changes: Any) -> NodeFacts:
    """What a healthy node with two A100s says."""
    return replace(
        NodeFacts(
            hostname=name,
            versions=VERSIONS,
            driver=DeviceList(("A100", "A100")),
            torch=DeviceList(("A100", "A100")),
            cards=(NetworkInterface("eth0", f"10.0.0.{number}", 12.5e9, 0),),
            space={
                "Ray's sessions": DiskSpace(100 * GIB, 50 * GIB),
                "shared memory": DiskSpace(8 * GIB, 8 * GIB),
            },
            variables={"RAY_AUTH_MODE": "token"},
        ),
        **changes,
    )


def make_node(name: str, number: int) -> Node:
    head = name == "head"
    return Node(f"id{number}", name, f"10.0.0.{number}", head, {"CPU": 8, "GPU": 2})


def make_link(one: str, other: str, rate: float = 10e9, **changes: Any) -> Link:
    """An all-reduce over the two devices of each end at bytes/s `rate`."""
    made = Link((one, other), "nccl", 4, 1.0, ("eth0", "eth0"))
    return replace(made, **{"seconds": made.bus_bandwidth / rate, **changes})


def healthy_cluster() -> Observations:
    return Observations(
        nodes=tuple(make_node(name, number) for number, name in enumerate(NAMES)),
        facts={name: node_facts(name, number) for number, name in enumerate(NAMES)},
        clocks=dict.fromkeys(NAMES, ClockReading(0.001, 0.002)),
        links=tuple(make_link(*pair) for pair in combinations(NAMES, 2)),
    )


def expected_cluster(**changes: Any) -> ExpectedCluster:
    metadata = ClusterMetadata(accelerator="cuda", devices_per_node=2, storage="/mnt/shared")
    cluster = ClusterSpec("lab", "local", 4, metadata.model_copy(update=changes))
    return ExpectedCluster("lab.yaml", cluster, tuple(f"10.0.0.{number}" for number in range(4)))


def with_facts(seen: Observations, name: str, **changes: Any) -> Observations:
    """`seen`, where one node says something else."""
    return replace(seen, facts={**seen.facts, name: replace(seen.facts[name], **changes)})


def without_node(seen: Observations, name: str) -> Observations:
    """`seen`, where one node has left."""
    return replace(
        seen,
        nodes=tuple(each for each in seen.nodes if each.name != name),
        facts={key: value for key, value in seen.facts.items() if key != name},
        clocks={key: value for key, value in seen.clocks.items() if key != name},
        links=tuple(each for each in seen.links if name not in each.ends),
    )


def with_links(seen: Observations, rates: Mapping[tuple[str, str], float]) -> Observations:
    slow = {ends: make_link(*ends, rate) for ends, rate in rates.items()}
    return replace(seen, links=tuple(slow.get(each.ends, each) for each in seen.links))


def without_links(seen: Observations, name: str) -> Observations:
    return replace(seen, links=tuple(each for each in seen.links if name not in each.ends))
