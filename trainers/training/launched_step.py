"""A step that the device may still compute, and the clock by which all ranks poll alike."""

import time
from dataclasses import dataclass

from trainers.distributed.transfer import Readback
from trainers.training.step_batches import StepBatches

PREEMPTION_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class LaunchedStep:
    """A step whose loss and gradient norm the device may still compute.

    figures: the loss, seconds since the start summed over the ranks, and the norm.
    """

    batches: StepBatches
    learning_rate: float
    figures: Readback
    started: float


class SyncedClock:
    """Decides when to poll, alike on all ranks: by the mean of their seconds since the start."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._now = self._polled = 0.0

    def set_mean(self, seconds: float) -> None:
        """Set the mean over the ranks."""
        self._now = seconds

    def is_due(self) -> bool:
        """Return whether PREEMPTION_POLL_SECONDS have passed since this last returned True."""
        due = self._now - self._polled >= PREEMPTION_POLL_SECONDS
        if due:
            self._polled = self._now
        return due
