"""Judges canaries: adds up what replicas tallied, and promotes or rolls back in the registry."""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from serving.registry.canary_metrics import Tally, merged
from serving.registry.canary_rule import judge
from serving.registry.registry import Registry
from serving.registry.snapshot import Snapshot
from serving.registry.state import ChangeRefused

log = logging.getLogger(__name__)

Tallies = Iterable[Mapping[str, Mapping[str, Any]]]  # of each replica, by name


class Bench:
    """Sits every second, in one place."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen = Snapshot()

    def sit(self, of_replicas: Tallies) -> None:
        """Judge every canary that runs, and do what is decided. Raises what the registry raises."""
        self._seen = self._registry.read(self._seen)
        for tally in self.summed(of_replicas):
            canary = self._seen.states[tally.name].canary
            assert canary is not None
            decision, reason = judge(tally, canary.rule, time.time() - canary.started)
            if decision == "wait":
                continue
            log.warning("%s:%s: %s: %s", tally.name, tally.canary, decision, reason)
            change = self._registry.promote if decision == "promote" else self._registry.rollback
            try:
                change(tally.name, tally.canary, why=reason)
            except ChangeRefused:  # somebody else was faster
                log.info("%s:%s is no canary any more", tally.name, tally.canary)

    def summed(self, of_replicas: Tallies) -> list[Tally]:
        """One tally for each canary that runs, be it empty."""
        held = [Tally.from_json(each) for tallies in of_replicas for each in tallies.values()]
        running = [
            Tally(state.name, state.live, state.canary.version, state.canary.started)
            for state in self._seen.states.values()
            if state.canary is not None and state.live is not None
        ]
        return [
            merged([empty, *(tally for tally in held if tally.subject == empty.subject)])
            for empty in running
        ]
