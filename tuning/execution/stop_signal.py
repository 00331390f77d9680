"""The stop signal: a trial waits after each evaluation until the search decides if it continues.

Why a file that is polled, instead of the STOP that a Ray Tune scheduler may return: on STOP, Tune
kills the trial's process. The workers of a trial on several devices are actors that this process
started; they would be left behind, holding their devices until Ray notices, which it does only
where its dashboard runs. So our scheduler always returns CONTINUE, the decision lies in the trial's
run directory, where every rank can read it, and the trial ends itself, workers first. The file also
outlives both processes: a trial restarted after a crash finds the decision it had missed.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import BerthaError
from trainers.distributed.object_collectives import run_on_rank0
from trainers.storage.directory import SyncedDirectory
from trainers.storage.filesystem import StoreError

DECISION = "verdict.json"
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.1, 0.5  # on a disk, and in a store


class TrialStopped(BerthaError):
    """The search has stopped this trial; its run directory can be resumed all the same."""


class StopSignalError(StoreError):
    """A decision that cannot be read; the message names the file."""


@dataclass(frozen=True)
class StopSignal:
    """The callback that every rank of the trial in `run` calls after each evaluation."""

    run: SyncedDirectory

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Wait for the decision on these metrics. Raises TrialStopped on all ranks, or on none."""
        if not run_on_rank0(lambda: self._wait_for_decision(int(metrics["tokens"]))):
            raise TrialStopped("stopped: the search found this trial not worth going on with")

    def _wait_for_decision(self, tokens: int) -> bool:
        while True:
            decided_tokens, goes_on = read_decision(self.run)
            if decided_tokens >= tokens or not goes_on:
                return goes_on
            time.sleep(REMOTE_POLL_SECONDS if self.run.home else POLL_SECONDS)


def write_decision(run: SyncedDirectory, tokens: int, goes_on: bool) -> None:
    """Leave the decision on the evaluation after `tokens` in the run directory."""
    run.write_shared(DECISION, json.dumps({"tokens": tokens, "goes_on": goes_on}) + "\n")


def read_decision(run: SyncedDirectory) -> tuple[int, bool]:
    """Return (tokens of the newest evaluation decided on, whether the trial continues).

    Raises StopSignalError where the file holds no decision: none would come in its place.
    """
    data = run.read_file(DECISION)
    if data is None:
        return 0, True
    try:
        decision = json.loads(data)
        return int(decision["tokens"]), bool(decision["goes_on"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StopSignalError(
            f"{run.address}/{DECISION}: is no decision of a search; remove it and resume the search"
        ) from None
