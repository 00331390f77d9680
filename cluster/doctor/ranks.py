"""The devices of a live cluster as ranks that can be called together, a pair of nodes at a time.

What a rank does is doctor/links.py's; here Ray puts it on its device. Ray is imported when a crew
is made. Neuron and TPU cores are not called: their nodes are timed over gloo, by the hosts' own
network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.doctor.allreduce import BACKENDS, PATIENCE, Link, Meeting, Rank, Timing
from cluster.doctor.gather import gathered
from cluster.doctor.observations import RESOURCES, Node

START_SECONDS = 60.0  # a process that imports torch may take this long to start


class Crew:
    """One rank a device on every node; where devices are not called, one a node."""

    def __init__(self, nodes: Sequence[Node], kind: str) -> None:
        """Starts all ranks, and waits until they are there or START_SECONDS have passed."""
        self.backend = BACKENDS.get(kind, "gloo")
        self._kind = kind
        self._nodes = {node.name: node for node in nodes}
        self._ranks = {name: self._started(node) for name, node in self._nodes.items()}
        asked = {
            (name, number): rank.address.remote()
            for name, ranks in self._ranks.items()
            for number, rank in enumerate(ranks)
        }
        _, late = gathered(asked, START_SECONDS)
        self.waiting = tuple(dict.fromkeys(name for name, _ in late))

    @property
    def names(self) -> list[str]:
        """Nodes whose ranks are there."""
        return [name for name in self._ranks if name not in self.waiting]

    @property
    def inside(self) -> list[tuple[str, ...]]:
        """Nodes with several ranks."""
        return [(name,) for name in self.names if len(self._ranks[name]) > 1]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._ranks:
            self._dismiss(name)

    def time(self, groups: Sequence[tuple[str, ...]]) -> list[Link]:
        """All-reduces over the devices of each group of nodes, all groups at the same time."""
        asked = {ends: self._ranks[ends[0]][0].address.remote() for ends in groups}
        addresses, silent = gathered(asked, START_SECONDS)
        begun = {ends: self._begin(ends, address) for ends, address in addresses.items()}
        timed = [self._ended(ends, futures) for ends, futures in begun.items()]
        return [*timed, *(self._failed(ends, why) for ends, why in silent.items())]

    def _begin(self, ends: tuple[str, ...], address: str) -> dict[int, Any]:
        ranks = [rank for name in ends for rank in self._ranks[name]]
        meeting = Meeting(address, len(ranks), self.backend)
        return {number: rank.time.remote(meeting, number) for number, rank in enumerate(ranks)}

    def _ended(self, ends: tuple[str, ...], futures: Mapping[int, Any]) -> Link:
        timings, failed = gathered(futures, PATIENCE)
        if failed:
            return self._failed(ends, next(iter(failed.values())))
        told: dict[int, Timing] = timings
        counts = [len(self._ranks[name]) for name in ends]
        firsts = [sum(counts[:place]) for place in range(len(ends))]
        slowest = max(timing.seconds for timing in told.values())
        cards = tuple(told[first].card for first in firsts)
        return Link(ends, self.backend, len(futures), slowest, cards)

    def _failed(self, ends: tuple[str, ...], why: str) -> Link:
        """The link, and new ranks at its ends: one that hangs would spoil what comes next."""
        number = sum(len(self._ranks[name]) for name in ends)
        for name in ends:
            self._dismiss(name)
            self._ranks[name] = self._started(self._nodes[name])
        return Link(ends, self.backend, number, None, trouble=why)

    def _started(self, node: Node) -> list[Any]:
        """Ranks on a node, each with its device."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        number = node.devices(self._kind) if self._kind in BACKENDS and self._kind != "cpu" else 0
        options: dict[str, Any] = {"num_cpus": 0}
        if number:
            options["resources"] = {RESOURCES[self._kind]: 1}
        if options.get("resources", {}).pop("GPU", 0):
            options["num_gpus"] = 1
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        remote = ray.remote(Rank).options(scheduling_strategy=there, **options)
        return [remote.remote(node.address) for _ in range(max(1, number))]

    def _dismiss(self, name: str) -> None:
        import ray

        for rank in self._ranks[name]:
            ray.kill(rank)
