"""Where a trial waits, after each evaluation, for the search to decide whether it goes on.

The search leaves its verdict in the trial's run directory. A trial ends itself when told to: if its
process were killed instead, the workers of a trial on several devices would be left behind, and
Ray frees their devices only where its dashboard runs.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import BerthaError
from trainers.distributed.object_collectives import on_first
from trainers.storage.directory import Directory

VERDICT = "verdict.json"
POLL_SECONDS, FAR_POLL_SECONDS = 0.1, 0.5  # on a disk, and in a store


class Halted(BerthaError):
    """The search has stopped this trial; its run directory may be resumed all the same."""


@dataclass(frozen=True)
class Gate:
    """What every rank of a trial calls after each evaluation. run: its run directory."""

    run: Directory

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Wait for the verdict on these metrics. Raises Halted on all ranks, or on none."""
        if not on_first(lambda: self._goes_on(int(metrics["tokens"]))):
            raise Halted("stopped: the search found this trial not worth going on with")

    def _goes_on(self, tokens: int) -> bool:
        while True:
            seen, goes_on = verdict(self.run)
            if seen >= tokens or not goes_on:
                return goes_on
            time.sleep(FAR_POLL_SECONDS if self.run.home else POLL_SECONDS)


def decide(run: Directory, tokens: int, goes_on: bool) -> None:
    """Leave the verdict on an evaluation after `tokens`."""
    run.leave(VERDICT, json.dumps({"tokens": tokens, "goes_on": goes_on}) + "\n")


def verdict(run: Directory) -> tuple[int, bool]:
    """(tokens of the newest evaluation that was decided on, whether the trial goes on)."""
    data = run.read(VERDICT)
    if data is None:
        return 0, True
    found = json.loads(data)
    return int(found["tokens"]), bool(found["goes_on"])
