"""Timed all-reduces between nodes: the pairing schedule, what each rank runs, and the result."""

import datetime
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.hardware.nics import bind_gloo_interface, list_interfaces

BACKENDS: Mapping[str, str] = {"cpu": "gloo", "cuda": "nccl"}
BUFFER_BYTES: Mapping[str, int] = {"gloo": 16 << 20, "nccl": 256 << 20}
REPEATS = 4
ALLREDUCE_TIMEOUT_SECONDS = 60.0  # until the caller gives up a pair and kills its ranks
MAX_ROUNDS = 15  # on a large cluster a node is paired with as many others, not all


@dataclass(frozen=True)
class Link:
    """An all-reduce over the devices of `ends`: two nodes, or the devices inside one.

    seconds: the best of REPEATS; None if it failed, as `trouble` explains. cards: the network card
    that carried it at each end; "" where none did.
    """

    ends: tuple[str, ...]
    backend: str
    num_ranks: int
    seconds: float | None
    cards: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def buffer_bytes(self) -> int:
        """Size of each rank's buffer."""
        return BUFFER_BYTES[self.backend]

    @property
    def bus_bandwidth(self) -> float:
        """Bytes/s on the wire, 2 (N - 1) / N of the buffer (nccl-tests, doc/PERFORMANCE.md)."""
        if self.seconds is None:
            return 0.0
        return 2 * (self.num_ranks - 1) / self.num_ranks * self.buffer_bytes / self.seconds

    @property
    def name(self) -> str:
        """Readable name of the link."""
        return " - ".join(self.ends) if len(self.ends) > 1 else f"inside {self.ends[0]}"


def schedule_rounds(nodes: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield rounds of disjoint pairs, to be timed at the same time (round-robin circle method).

    Every two nodes meet once; of more than MAX_ROUNDS + 1 nodes, each meets MAX_ROUNDS others.
    """
    circle: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(min(len(circle) - 1, MAX_ROUNDS)):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield tuple((one, other) for one, other in pairs if one is not None and other is not None)
        # The first node stays, all others move on by one: no two meet again before all have met.
        circle = [circle[0], circle[-1], *circle[1:-1]]


class AllReduceRank:
    """One device's rank in the all-reduces; an actor in a process of its own on the node."""

    def __init__(self, host: str) -> None:
        """host: the node's address."""
        bind_gloo_interface(host)
        self._host = host

    def rendezvous_address(self) -> str:
        """Return the address of a free port of this node, for other ranks to meet at.

        The port is free again when this returns, so another process may take it: every all-reduce
        asks for a new one, and one that loses the race fails on its own.
        """
        host = self._host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return f"tcp://[{host}]:{port}" if family == socket.AF_INET6 else f"tcp://{host}:{port}"

    def time_allreduce(
        self, address: str, backend: str, rank: int, num_ranks: int
    ) -> tuple[float, str]:
        """Join the process group at `address`, that of rank 0, and time all-reduces.

        Returns the best time in seconds, and the card that carried most bytes. Raises RuntimeError
        if a rank does not come.
        """
        import torch
        import torch.distributed as dist

        device = torch.device("cuda" if backend == "nccl" else "cpu")
        buffer = torch.ones(BUFFER_BYTES[backend] // 4, device=device)
        sent_before = {card.name: card.sent for card in list_interfaces()}
        # Half the caller's limit: a rank whose partner is missing raises, and says why, before the
        # caller gives up and kills it, which says nothing.
        dist.init_process_group(
            backend,
            init_method=address,
            rank=rank,
            world_size=num_ranks,
            timeout=datetime.timedelta(seconds=ALLREDUCE_TIMEOUT_SECONDS / 2),
        )
        try:
            seconds = min(_time_once(dist, buffer, device) for _ in range(REPEATS))
        finally:
            dist.destroy_process_group()
        sent = {card.name: card.sent - sent_before.get(card.name, 0) for card in list_interfaces()}
        busiest = max(sent, key=sent.__getitem__, default="")
        return seconds, busiest if sent.get(busiest, 0) > buffer.numel() else ""


def _time_once(dist: Any, buffer: Any, device: Any) -> float:
    import torch

    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(buffer, op=dist.ReduceOp.MAX)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started
