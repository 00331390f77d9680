"""A healthy cluster as the doctor sees it, and ways to make it ill."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from cluster.doctor.allreduce import Link
from cluster.doctor.diagnosis import Expected
from cluster.doctor.node_facts import Card, Devices, Space, Vitals
from cluster.doctor.observations import Clock, Node, Observed
from cluster.spec import ClusterSpec, Metadata

GIB = 1 << 30
NAMES = ("head", "w1", "w2", "w3")
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "Bertha's code": "abc"}


def told(name: str, number: int, **changes: Any) -> Vitals:
    """What a healthy node with two A100s says."""
    return replace(
        Vitals(
            hostname=name,
            versions=VERSIONS,
            driver=Devices(("A100", "A100")),
            torch=Devices(("A100", "A100")),
            cards=(Card("eth0", f"10.0.0.{number}", 12.5e9, 0),),
            space={
                "Ray's sessions": Space(100 * GIB, 50 * GIB),
                "shared memory": Space(8 * GIB, 8 * GIB),
            },
            variables={"RAY_AUTH_MODE": "token"},
        ),
        **changes,
    )


def node(name: str, number: int) -> Node:
    head = name == "head"
    return Node(f"id{number}", name, f"10.0.0.{number}", head, {"CPU": 8, "GPU": 2})


def link(one: str, other: str, rate: float = 10e9, **changes: Any) -> Link:
    """An all-reduce over the two devices of each end at bytes/s `rate`."""
    made = Link((one, other), "nccl", 4, 1.0, ("eth0", "eth0"))
    return replace(made, **{"seconds": made.rate / rate, **changes})


def healthy() -> Observed:
    return Observed(
        nodes=tuple(node(name, number) for number, name in enumerate(NAMES)),
        vitals={name: told(name, number) for number, name in enumerate(NAMES)},
        clocks=dict.fromkeys(NAMES, Clock(0.001, 0.002)),
        links=tuple(link(*pair) for pair in combinations(NAMES, 2)),
    )


def expected(**changes: Any) -> Expected:
    metadata = Metadata(accelerator="cuda", devices_per_node=2, storage="/mnt/shared")
    cluster = ClusterSpec("lab", "local", 4, metadata.model_copy(update=changes))
    return Expected("lab.yaml", cluster, tuple(f"10.0.0.{number}" for number in range(4)))


def but(seen: Observed, name: str, **changes: Any) -> Observed:
    """`seen`, where one node says something else."""
    return replace(seen, vitals={**seen.vitals, name: replace(seen.vitals[name], **changes)})


def without(seen: Observed, name: str) -> Observed:
    """`seen`, where one node has left."""
    return replace(
        seen,
        nodes=tuple(each for each in seen.nodes if each.name != name),
        vitals={key: value for key, value in seen.vitals.items() if key != name},
        clocks={key: value for key, value in seen.clocks.items() if key != name},
        links=tuple(each for each in seen.links if name not in each.ends),
    )


def with_links(seen: Observed, rates: Mapping[tuple[str, str], float]) -> Observed:
    slow = {ends: link(*ends, rate) for ends, rate in rates.items()}
    return replace(seen, links=tuple(slow.get(each.ends, each) for each in seen.links))


def without_links(seen: Observed, name: str) -> Observed:
    return replace(seen, links=tuple(each for each in seen.links if name not in each.ends))
