"""The one door: HAProxy in front of all replicas, and what they tell about themselves.

A Serve deployment of one replica on the head node. Replicas beat every second; who does not beat is
taken out. If the front itself dies, HAProxy goes on, and the next front adopts it with the replicas
it has. Here, where everything comes together, a canary is judged too.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import BerthaError
from serving.deployment.canary_judge import Bench
from serving.deployment.haproxy import NUM_SLOTS, HAProxy, HAProxyError, Slot
from serving.http.metrics import Sample, merged
from serving.registry.canary_metrics import Tally
from serving.registry.registry import Registry

SILENCE_SECONDS = 5.0  # without a beat, a replica is taken for lost

MOST_GONE = 100  # replicas whose tallies are remembered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beat:
    """What a replica says every second.

    address: where it listens, host:port. counts: what it has counted since it started. tallies: of
    the canaries it saw, by name.
    """

    address: str
    counts: Mapping[Sample, float] = field(default_factory=dict)
    tallies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Replicas:
    """Who is there, and in which slot of HAProxy. Safe for threads."""

    def __init__(self, haproxy: HAProxy) -> None:
        self._haproxy = haproxy
        self._lock = threading.Lock()
        now = time.monotonic()
        self._slots = {slot.address: slot.number for slot in haproxy.slots()}
        self._heard = dict.fromkeys(self._slots, now)
        self._beats: dict[str, Beat] = {}
        self._gone: list[Mapping[Sample, float]] = []  # what those counted that are no more
        self._gone_tallies: list[Mapping[str, Mapping[str, Any]]] = []

    def beat(self, beat: Beat) -> int:
        """Note a beat, give a new replica its slot; how many replicas there are."""
        with self._lock:
            self._heard[beat.address] = time.monotonic()
            self._beats[beat.address] = beat
            if beat.address not in self._slots:
                number = min(set(range(1, NUM_SLOTS + 1)) - set(self._slots.values()))
                self._haproxy.enter(Slot(number, beat.address))
                self._slots[beat.address] = number
            return len(self._slots)

    def drain(self, address: str) -> None:
        """A replica wants no new requests."""
        with self._lock:
            if address in self._slots:
                self._haproxy.drain(self._slots[address])

    def leave(self, address: str) -> None:
        """A replica has ended."""
        with self._lock:
            self._remove(address)

    def bury(self) -> None:
        """Take out who has not been heard of."""
        silent = time.monotonic() - SILENCE_SECONDS
        with self._lock:
            for address, heard in list(self._heard.items()):
                if heard < silent:
                    log.warning("replica %s has not been heard of; taken out", address)
                    self._remove(address)

    def counts(self) -> dict[Sample, float]:
        """What all replicas counted; of those that are gone, too."""
        with self._lock:
            total = merged([*self._gone, *(beat.counts for beat in self._beats.values())])
            total["bertha_replicas", ()] = float(len(self._slots))
        return total

    def tallies(self) -> list[Mapping[str, Mapping[str, Any]]]:
        """Of the canaries, by replica."""
        with self._lock:
            held = [beat.tallies for beat in self._beats.values()]
            return [*held, *self._gone_tallies]

    def _remove(self, address: str) -> None:
        number = self._slots.pop(address, None)
        if number is not None:
            self._haproxy.leave(number)
        self._heard.pop(address, None)
        beat = self._beats.pop(address, None)
        if beat is not None:  # counters only: a gauge of what is gone is nothing
            kept = {sample: n for sample, n in beat.counts.items() if _is_counter(sample[0])}
            self._gone = [merged([*self._gone, kept])]
            self._gone_tallies = [*self._gone_tallies, beat.tallies][-MOST_GONE:]


def _is_counter(name: str) -> bool:
    return name.endswith(("_total", "_bucket", "_sum", "_count"))


class Front:
    """The Serve deployment around `Replicas`."""

    def __init__(
        self,
        directory: str,
        host: str,
        port: int,
        certificate: str | None,
        registry: str,
    ) -> None:
        self._haproxy = HAProxy.start(
            Path(directory),
            host,
            port,
            Path(certificate) if certificate else None,
            while_lives=os.getppid(),  # Ray's: the front itself may be replaced
        )
        self._replicas = Replicas(self._haproxy)
        self._bench = Bench(Registry.open(registry))
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, daemon=True, name="watch")
        self._watch.start()

    def beat(self, beat: Beat) -> int:
        """As `Replicas.beat`."""
        return self._replicas.beat(beat)

    def drain(self, address: str) -> None:
        """As `Replicas.drain`."""
        self._replicas.drain(address)

    def leave(self, address: str) -> None:
        """As `Replicas.leave`."""
        self._replicas.leave(address)

    def counts(self) -> dict[Sample, float]:
        """As `Replicas.counts`."""
        return self._replicas.counts()

    def tallies(self) -> list[Tally]:
        """Of each canary that runs, what all replicas together have counted."""
        return self._bench.summed(self._replicas.tallies())

    def check_health(self) -> None:
        """Called by Serve, which replaces the front when this raises."""
        if not self._haproxy.alive():
            raise HAProxyError("HAProxy does not answer")

    def __del__(self) -> None:
        self._ended.set()
        self._haproxy.stop()

    def _keep_watch(self) -> None:
        while not self._ended.wait(1.0):
            try:
                self._replicas.bury()
                self._bench.sit(self._replicas.tallies())
            except (BerthaError, OSError) as error:
                log.warning("%s", error)
