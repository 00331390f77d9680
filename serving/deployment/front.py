"""The front: HAProxy, the heartbeats of its replicas, and the judge of canaries.

A Serve deployment of one replica on the head node. Replicas send a heartbeat every second and are
removed without one. If HAProxy dies, the front starts it again with the same replicas. If the front
itself dies, HAProxy keeps running, and the next front adopts it with the replicas it has.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import BerthaError
from cluster.private_files import private_directory
from serving.deployment.call_port import close_call_port
from serving.deployment.front_log import HAProxyLog
from serving.deployment.haproxy import NUM_SLOTS, HAProxy, HAProxyError, ServerSlot
from serving.http.log_lines import LogFormat, configure_logs
from serving.http.metrics import Sample, merge_snapshots
from serving.registry.canary_metrics import CanaryMetrics, merge_metrics
from serving.registry.canary_rule import judge_canary
from serving.registry.registry import Registry
from serving.registry.state import ChangeRefused, RegistrySnapshot

HEARTBEAT_TIMEOUT_SECONDS = 5.0
WATCH_SECONDS = 1.0
COUNTER_SUFFIXES = ("_total", "_bucket", "_sum", "_count")
MAX_REMEMBERED = 100  # ended replicas whose canary metrics are kept

log = logging.getLogger(__name__)

CanariesByName = Mapping[str, CanaryMetrics]  # of one replica


@dataclass(frozen=True)
class Heartbeat:
    """What a replica reports every second.

    address: where it listens, host:port. samples: its metrics. canary_metrics: by name.
    grpc_address: where it listens for gRPC; "": nowhere.
    """

    address: str
    samples: Mapping[Sample, float] = field(default_factory=dict)
    canary_metrics: CanariesByName = field(default_factory=dict)
    grpc_address: str = ""


class ReplicaTable:
    """The replicas and their slots in HAProxy. Thread-safe."""

    def __init__(self, haproxy: HAProxy) -> None:
        self._haproxy = haproxy
        self._lock = threading.Lock()
        # Start from what HAProxy itself says: it may have been adopted with replicas in it, which
        # then have a full timeout to send their first heartbeat to this table.
        self._slots = {slot.address: slot for slot in haproxy.list_slots()}
        self._draining: set[str] = set()
        self._last_seen = dict.fromkeys(self._slots, time.monotonic())
        self._heartbeats: dict[str, Heartbeat] = {}
        self._ended_samples: dict[Sample, float] = {}
        self._ended_canaries: list[CanariesByName] = []

    def heartbeat(self, beat: Heartbeat) -> int:
        """Record a heartbeat, give a new replica its slot; return the number of replicas."""
        with self._lock:
            self._last_seen[beat.address] = time.monotonic()
            self._heartbeats[beat.address] = beat
            if beat.address not in self._slots:
                taken = {slot.number for slot in self._slots.values()}
                number = min(set(range(1, NUM_SLOTS + 1)) - taken)
                slot = ServerSlot(number, beat.address, beat.grpc_address)
                self._haproxy.enable_slot(slot)
                self._slots[beat.address] = slot
            return len(self._slots)

    def drain_replica(self, address: str) -> None:
        """Send no new requests to a replica."""
        with self._lock:
            if address in self._slots:
                self._draining.add(address)
                self._haproxy.drain_slot(self._slots[address].number)

    def remove_replica(self, address: str) -> None:
        """Remove a replica that has ended."""
        with self._lock:
            self._forget_replica(address)

    def evict_silent(self) -> None:
        """Remove replicas whose heartbeat has timed out."""
        oldest = time.monotonic() - HEARTBEAT_TIMEOUT_SECONDS
        with self._lock:
            for address, last_seen in list(self._last_seen.items()):
                if last_seen < oldest:
                    log.warning("replica %s removed: its heartbeat timed out", address)
                    self._forget_replica(address)

    def restart_haproxy(self) -> None:
        """Start HAProxy again after its end, with the replicas it had."""
        with self._lock:
            self._haproxy.restart(
                [slot for address, slot in self._slots.items() if address not in self._draining]
            )

    def merge_samples(self) -> dict[Sample, float]:
        """Add up the metrics of all replicas, ended ones included."""
        with self._lock:
            current = [beat.samples for beat in self._heartbeats.values()]
            total = merge_snapshots([self._ended_samples, *current])
            total["bertha_replicas", ()] = float(len(self._slots))
        return total

    def list_canary_metrics(self) -> list[CanariesByName]:
        """Return the canary metrics of each replica, ended ones included."""
        with self._lock:
            current = [beat.canary_metrics for beat in self._heartbeats.values()]
            return [*current, *self._ended_canaries]

    def _forget_replica(self, address: str) -> None:
        """Free the slot of a replica; the caller holds the lock."""
        slot = self._slots.pop(address, None)
        self._draining.discard(address)
        if slot is not None:
            self._haproxy.disable_slot(slot.number)
        self._last_seen.pop(address, None)
        beat = self._heartbeats.pop(address, None)
        if beat is not None:
            # Counters must never fall, so those of ended replicas are kept; gauges are not.
            kept = {s: n for s, n in beat.samples.items() if s[0].endswith(COUNTER_SUFFIXES)}
            self._ended_samples = merge_snapshots([self._ended_samples, kept])
            self._ended_canaries = [*self._ended_canaries, beat.canary_metrics][-MAX_REMEMBERED:]


class CanaryJudge:
    """Evaluates every running canary once a second (singleton)."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._snapshot = RegistrySnapshot()

    def judge_canaries(self, replicas: Iterable[CanariesByName]) -> None:
        """Promote or roll back canaries as their rules decide."""
        self._snapshot = self._registry.read_snapshot(self._snapshot)
        for metrics in self.merge_running(replicas):
            canary = self._snapshot.states[metrics.name].canary
            assert canary is not None
            action, reason = judge_canary(metrics, canary.rule, time.time() - canary.started)
            if action == "wait":
                continue
            log.warning("%s:%s: %s: %s", metrics.name, metrics.canary, action, reason)
            change = self._registry.promote if action == "promote" else self._registry.rollback
            try:
                change(metrics.name, metrics.canary, why=reason)
            except ChangeRefused:  # an operator was faster
                log.info("%s:%s is no canary any more", metrics.name, metrics.canary)

    def merge_running(self, replicas: Iterable[CanariesByName]) -> list[CanaryMetrics]:
        """Merge the metrics of each running canary, empty ones included."""
        reported = [each for by_name in replicas for each in by_name.values()]
        running = [
            CanaryMetrics(state.name, state.live, state.canary.version, state.canary.started)
            for state in self._snapshot.states.values()
            if state.canary is not None and state.live is not None
        ]
        return [
            merge_metrics([empty, *(each for each in reported if each.trial_id == empty.trial_id)])
            for empty in running
        ]


class Front:
    """The Serve deployment around `ReplicaTable`."""

    def __init__(
        self,
        host: str,
        port: int,
        certificate: str | None,
        registry: str,
        origins: Sequence[str] = (),
        logs: tuple[LogFormat, str | None] | None = None,
        grpc: bool = False,
    ) -> None:
        """Start HAProxy. logs: format and file of the lines of requests; None for none."""
        close_call_port()
        self._ended = threading.Event()
        self._watches: list[threading.Thread] = []
        directory = _haproxy_directory(port)
        self._haproxy = HAProxy(
            directory,
            host,
            port,
            Path(certificate) if certificate else None,
            while_lives=os.getppid(),  # Ray's: the front itself may be replaced
            origins=origins,
            logs=logs is not None,
            grpc=grpc,
        )
        self._haproxy.start()
        if logs is not None:
            configure_logs(logs[0], Path(logs[1]) if logs[1] else None)
            HAProxyLog(directory).start()
        self._replicas = ReplicaTable(self._haproxy)
        self._judge = CanaryJudge(Registry.open(registry))
        # Apart, because a registry that does not answer must not hold up HAProxy.
        self._watches = [
            threading.Thread(target=watch, daemon=True, name="watch")
            for watch in (self._watch_haproxy, self._watch_replicas)
        ]
        for thread in self._watches:
            thread.start()

    def heartbeat(self, beat: Heartbeat) -> int:
        """As `ReplicaTable.heartbeat`."""
        return self._replicas.heartbeat(beat)

    def drain_replica(self, address: str) -> None:
        """As `ReplicaTable.drain_replica`."""
        self._replicas.drain_replica(address)

    def remove_replica(self, address: str) -> None:
        """As `ReplicaTable.remove_replica`."""
        self._replicas.remove_replica(address)

    def merge_samples(self) -> dict[Sample, float]:
        """As `ReplicaTable.merge_samples`."""
        return self._replicas.merge_samples()

    def merge_canary_metrics(self) -> list[CanaryMetrics]:
        """Return the metrics of each running canary over all replicas."""
        return self._judge.merge_running(self._replicas.list_canary_metrics())

    def check_health(self) -> None:
        """Raise if the watch over HAProxy or the replicas has ended; Serve replaces the front."""
        if not all(thread.is_alive() for thread in self._watches):
            raise RuntimeError("the watch over HAProxy or the replicas has ended")

    def __del__(self) -> None:
        self._ended.set()
        for thread in self._watches[:1]:  # that of HAProxy, lest it starts it again
            thread.join()
        self._haproxy.stop()

    def _watch_haproxy(self) -> None:
        while not self._ended.is_set():
            if not self._haproxy.wait_for_end(WATCH_SECONDS):
                if not self._haproxy.is_alive():
                    log.warning("HAProxy does not answer; it is killed")
                    self._haproxy.kill()
            elif not self._ended.is_set():
                log.warning("HAProxy has ended; it is started again")
                try:
                    self._replicas.restart_haproxy()
                except HAProxyError as error:
                    log.warning("%s", error)
                    self._ended.wait(WATCH_SECONDS)

    def _watch_replicas(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            try:
                self._replicas.evict_silent()
                self._judge.judge_canaries(self._replicas.list_canary_metrics())
            except (BerthaError, OSError) as error:
                log.warning("%s", error)


def _haproxy_directory(port: int) -> Path:
    """Return the private directory for HAProxy's files, on this machine."""
    # Below the home and not in XDG_RUNTIME_DIR, which is deleted when the user who has started the
    # cluster logs out. Homes may be shared by machines.
    place = private_directory(Path("~/.cache/bertha/run").expanduser())
    return private_directory(place / f"serve-{socket.gethostname()}-{port}")
