"""Ranks as Ray actors, one per device, that time all-reduces over chosen groups of nodes.

Neuron and TPU cores are not used: their nodes are timed over gloo, by the hosts' network.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from cluster.doctor.allreduce import ALLREDUCE_TIMEOUT_SECONDS, BACKENDS, AllReduceRank, Link
from cluster.doctor.observations import Node

START_SECONDS = 60.0  # a process that imports torch may take this long to start
Key = TypeVar("Key")


class RankActors:
    """One rank per device on every node; one per node where devices are not used."""

    def __init__(self, nodes: Sequence[Node], kind: str) -> None:
        """Start all ranks; those that take over START_SECONDS make their node a busy one."""
        self.backend = BACKENDS.get(kind, "gloo")
        self._nodes = {node.name: node for node in nodes}
        self._ranks = {name: self._start_ranks(node) for name, node in self._nodes.items()}
        futures = {
            (name, number): rank.rendezvous_address.remote()
            for name, ranks in self._ranks.items()
            for number, rank in enumerate(ranks)
        }
        _, late = gather_replies(futures, START_SECONDS)
        self.busy_nodes = tuple(dict.fromkeys(name for name, _ in late))

    @property
    def ready_nodes(self) -> list[str]:
        """Nodes whose ranks have started."""
        return [name for name in self._ranks if name not in self.busy_nodes]

    @property
    def multi_rank_nodes(self) -> list[tuple[str, ...]]:
        """Ready nodes with several ranks, each as a group of one."""
        return [(name,) for name in self.ready_nodes if len(self._ranks[name]) > 1]

    def __enter__(self) -> RankActors:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._ranks:
            self._kill_ranks(name)

    def time_groups(self, groups: Sequence[tuple[str, ...]]) -> list[Link]:
        """Time all-reduces over the devices of each group of nodes, all groups at the same time."""
        futures = {ends: self._ranks[ends[0]][0].rendezvous_address.remote() for ends in groups}
        addresses, failed = gather_replies(futures, START_SECONDS)
        started = {ends: self._start_group(ends, address) for ends, address in addresses.items()}
        timed = [self._collect_link(ends, timings) for ends, timings in started.items()]
        return [*timed, *(self._replace_failed(ends, reason) for ends, reason in failed.items())]

    def _start_group(self, ends: tuple[str, ...], address: str) -> dict[int, Any]:
        ranks = [rank for name in ends for rank in self._ranks[name]]
        return {
            number: rank.time_allreduce.remote(address, self.backend, number, len(ranks))
            for number, rank in enumerate(ranks)
        }

    def _collect_link(self, ends: tuple[str, ...], futures: Mapping[int, Any]) -> Link:
        timings, failed = gather_replies(futures, ALLREDUCE_TIMEOUT_SECONDS)
        if failed:
            return self._replace_failed(ends, next(iter(failed.values())))
        counts = [len(self._ranks[name]) for name in ends]
        slowest = max(seconds for seconds, _ in timings.values())
        # The cards that the first rank of each node used.
        cards = tuple(timings[sum(counts[:place])][1] for place in range(len(ends)))
        return Link(ends, self.backend, len(futures), slowest, cards)

    def _replace_failed(self, ends: tuple[str, ...], reason: str) -> Link:
        """Return a failed link, and start new ranks at its ends.

        An actor runs one call at a time: a rank that still hangs in NCCL would make every later
        pair of its node fail as well, so a healthy node would look broken.
        """
        num_ranks = sum(len(self._ranks[name]) for name in ends)
        for name in ends:
            self._kill_ranks(name)
            self._ranks[name] = self._start_ranks(self._nodes[name])
        return Link(ends, self.backend, num_ranks, None, trouble=reason)

    def _start_ranks(self, node: Node) -> list[Any]:
        number = node.count_devices("cuda") if self.backend == "nccl" else 0
        options = {"num_gpus": 1} if number else {}
        return [
            start_actor(AllReduceRank, node, node.address, **options) for _ in range(max(1, number))
        ]

    def _kill_ranks(self, name: str) -> None:
        import ray

        for rank in self._ranks[name]:
            ray.kill(rank)


def start_actor(actor: type, node: Node, *arguments: Any, **options: Any) -> Any:
    """Start an actor on a node, without claiming a CPU of it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    remote = ray.remote(actor).options(num_cpus=0, scheduling_strategy=strategy, **options)
    return remote.remote(*arguments)


def gather_replies(
    futures: Mapping[Key, Any], seconds: float
) -> tuple[dict[Key, Any], dict[Key, str]]:
    """Return the replies that arrive within `seconds`, and the reason why each other one failed."""
    import ray

    replies: dict[Key, Any] = {}
    failed: dict[Key, str] = {}
    give_up = time.monotonic() + seconds
    for key, future in futures.items():
        try:
            replies[key] = ray.get(future, timeout=max(0.01, give_up - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            failed[key] = f"no answer within {seconds:.0f} s"
        except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
            # Ray prints the remote traceback first and the message last.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            failed[key] = lines[-1] if lines else type(error).__name__
    return replies, failed
