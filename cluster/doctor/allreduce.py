"""All-reduces between nodes, timed: who is paired with whom, what a rank does, what came out.

`python -m cluster doctor` compares the times with planning/collectives.py. Knows no Ray; torch is
imported by the ranks only.
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.hardware.nics import cards, meet_over

BACKENDS: Mapping[str, str] = {"cpu": "gloo", "cuda": "nccl"}
NUM_BYTES: Mapping[str, int] = {"gloo": 16 << 20, "nccl": 256 << 20}
REPEATS = 4
PATIENCE = 60.0  # seconds until a pair that has not met is given up
MOST_ROUNDS = 15  # on large clusters a node meets as many others, not all


@dataclass(frozen=True)
class Meeting:
    """Where and how the ranks of one all-reduce meet. address: tcp://host:port of rank 0."""

    address: str
    num_ranks: int
    backend: str


@dataclass(frozen=True)
class Timing:
    """Of one rank: the best of some all-reduces, and the card that carried most bytes of them."""

    seconds: float
    card: str


@dataclass(frozen=True)
class Link:
    """An all-reduce over the devices of `ends`: two nodes, or one and its own devices.

    seconds: the best of some; None where it failed, for the reason in `trouble`. cards: that
    carried it, one an end; "" where none did.
    """

    ends: tuple[str, ...]
    backend: str
    num_ranks: int
    seconds: float | None
    cards: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def num_bytes(self) -> int:
        """Of the buffer that every rank has."""
        return NUM_BYTES[self.backend]

    @property
    def rate(self) -> float:
        """Bytes/s on the wire, 2 (N - 1) / N of the buffer (nccl-tests, doc/PERFORMANCE.md)."""
        if self.seconds is None:
            return 0.0
        return 2 * (self.num_ranks - 1) / self.num_ranks * self.num_bytes / self.seconds

    @property
    def name(self) -> str:
        """The ends in words."""
        return " - ".join(self.ends) if len(self.ends) > 1 else f"inside {self.ends[0]}"


def rounds(nodes: Sequence[str]) -> Iterator[tuple[tuple[str, str], ...]]:
    """Pairs that may be timed beside each other, round after round: the circle method.

    Every two nodes meet once; of more than MOST_ROUNDS + 1 nodes, each meets MOST_ROUNDS others.
    """
    circle: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(min(len(circle) - 1, MOST_ROUNDS)):
        half = len(circle) // 2
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield tuple((one, other) for one, other in pairs if one is not None and other is not None)
        circle = [circle[0], circle[-1], *circle[1:-1]]


class Rank:
    """One device in the all-reduces; lives in a process of its own on the device's node."""

    def __init__(self, host: str) -> None:
        """host: the node's address."""
        meet_over(host)
        self._host = host

    def address(self) -> str:
        """Where others can meet this rank: a port of this node that is free now."""
        host = self._host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as held:
            held.bind(("", 0))
            port = held.getsockname()[1]
        return f"tcp://[{host}]:{port}" if family == socket.AF_INET6 else f"tcp://{host}:{port}"

    def time(self, meeting: Meeting, rank: int) -> Timing:
        """Meet the others and reduce. Raises RuntimeError when they do not come."""
        import torch
        import torch.distributed as dist

        device = torch.device("cuda" if meeting.backend == "nccl" else "cpu")
        buffer = torch.ones(NUM_BYTES[meeting.backend] // 4, device=device)
        before = {card.name: card.sent for card in cards()}
        dist.init_process_group(
            meeting.backend,
            init_method=meeting.address,
            rank=rank,
            world_size=meeting.num_ranks,
            timeout=datetime.timedelta(seconds=PATIENCE / 2),
        )
        try:
            seconds = min(_timed(dist, buffer, device) for _ in range(REPEATS))
        finally:
            dist.destroy_process_group()
        carried = {card.name: card.sent - before.get(card.name, 0) for card in cards()}
        busiest = max(carried, key=carried.__getitem__, default="")
        return Timing(seconds, busiest if carried.get(busiest, 0) > buffer.numel() else "")


def _timed(dist: Any, buffer: Any, device: Any) -> float:
    """Seconds of one all-reduce that all ranks begin together."""
    import torch

    dist.barrier()
    started = time.perf_counter()
    dist.all_reduce(buffer, op=dist.ReduceOp.MAX)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started
