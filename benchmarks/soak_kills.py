"""What a soak kills, when, and how many requests were lost to each kill.

The order of kinds and the moments are drawn from a seed; which process of a kind is hit depends on
what runs at that moment.
"""

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.e2e.hosts.hosts import Host

OUT_SECONDS = 20.0  # that a host is cut off
RAYLET = "raylet/raylet "


@dataclass(frozen=True)
class Kind:
    """A kind of victim. pattern: of the command lines of its processes; "" for a whole host.

    is_of_worker: the victim takes a whole worker host out, for as long as Ray is not back there.
    """

    name: str
    pattern: str
    is_of_worker: bool = False


KINDS = (
    Kind("replica", "ray::ServeReplica:bertha:replica"),
    Kind("front", "ray::ServeReplica:bertha:front"),
    Kind("haproxy", "^[^ ]*haproxy "),
    Kind("worker", "RayTrainWorker"),
    Kind("trial", "ray::(ImplicitFunc|run_trial)"),
    Kind("driver", r"^[^ ]*python[^ ]* -m (trainers|tuning) "),
    Kind("raylet", RAYLET, is_of_worker=True),
    Kind("host", "", is_of_worker=True),
)


@dataclass(frozen=True)
class PlannedKill:
    """A kill that is due `at` seconds from the start. pick: which of the victims, from 0 to 1."""

    at: float
    kind: Kind
    pick: float


def plan_kills(number: int, seconds: float, seed: int) -> list[PlannedKill]:
    """Draw kills: one at a random moment of each of `number` equal parts of the time.

    Every kind comes once in each round, in a random order.
    """
    rng = random.Random(seed)
    kinds: list[Kind] = []
    while len(kinds) < number:
        kinds += rng.sample(KINDS, len(KINDS))
    part = seconds / number
    return [
        PlannedKill((index + rng.random()) * part, kinds[index], rng.random())
        for index in range(number)
    ]


class Killer:
    """Kills on `head` and `workers`, of which one at a time may be out.

    power_on: boots a host again. clock: in seconds.
    """

    def __init__(
        self,
        head: Host,
        workers: Sequence[Host],
        power_on: Callable[[Host], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._head, self._workers, self._power_on = head, list(workers), power_on
        self._clock = clock
        self._off: dict[str, float] = {}  # hosts without power, and since when

    def kill(self, planned: PlannedKill) -> dict[str, Any] | None:
        """Kill what is planned, or what is next in KINDS where there is none; what was killed.

        None if there is nothing at all to kill now.
        """
        first = KINDS.index(planned.kind)
        for kind in (*KINDS[first:], *KINDS[:first]):
            victims = self._list_victims(kind)
            if not victims:
                continue
            host, pid, command = victims[int(planned.pick * len(victims))]
            if pid:
                host.run("kill", "-KILL", pid)
            else:
                host.cut_power()
                self._off[host.name] = self._clock()
            what = {"kind": kind.name, "planned": planned.kind.name, "host": host.name}
            return {**what, "process": command[:80]}
        return None

    def restore_hosts(self) -> None:
        """Give power back to hosts that have been without it for long enough."""
        for host in self._workers:
            if self._clock() - self._off.get(host.name, math.inf) >= OUT_SECONDS:
                del self._off[host.name]
                self._power_on(host)

    def are_all_back(self) -> bool:
        """Return whether Ray runs on every host."""
        return not self._off and all(each.matching_processes(RAYLET) for each in self._workers)

    def _list_victims(self, kind: Kind) -> list[tuple[Host, str, str]]:
        """List hosts, process ids and command lines; "" and "" for whole hosts."""
        if kind.is_of_worker and not self.are_all_back():
            return []
        if not kind.pattern:
            return [(host, "", "") for host in self._workers]
        hosts = self._workers if kind.is_of_worker else [self._head, *self._workers]
        victims = []
        for host in hosts:
            if host.name not in self._off:
                for line in host.matching_processes(kind.pattern):
                    pid, _, command = line.partition(" ")
                    victims.append((host, pid, command))
        return victims


def count_lost(
    kills: Sequence[float], until: float, outcomes: Sequence[Sequence[Any]]
) -> list[dict[str, Any]]:
    """Count the requests lost to each kill: those due between it and the next, or `until`.

    kills: their moments, rising. outcomes: rows of `load.py --outcomes`.
    """
    counts = []
    for begin, end in itertools.pairwise([*kills, until]):
        within = [each for each in outcomes if begin <= each[0] < end]
        failed = [each for each in within if each[1] != 200]
        counts.append(
            {
                "window_seconds": round(end - begin, 1),
                "sent": len(within),
                "lost": len(failed),
                "how": dict(Counter(each[3] or str(each[1]) for each in failed)),
                "seconds_out": round(failed[-1][0] - failed[0][0], 2) if failed else 0.0,
            }
        )
    return counts
