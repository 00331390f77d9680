"""The events of a training loop, and its position."""

import math
from dataclasses import dataclass, replace

from trainers.config.metrics import lower_is_better
from trainers.training.metrics import Metrics


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step.

    tokens: of the texts. computed_tokens: with padding. squared_tokens: the sum over samples of the
    square of their tokens, for the FLOPs of attention; 0 where it was not counted. memory_bytes:
    the most that rank 0's device has held so far; 0 for a device that does not say.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    samples: int
    tokens: int
    computed_tokens: int
    micro_batches: int
    seconds: float
    squared_tokens: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class EvalEvent:
    """The validation metrics after `step`, and whether they are the best so far.

    tokens: of the texts trained on since the start of the run.
    """

    step: int
    epoch: int
    metrics: Metrics
    best: bool
    seconds: float
    tokens: int = 0


@dataclass(frozen=True)
class SaveEvent:
    """Time to save a checkpoint of `step`. preempted: a machine is about to be reclaimed."""

    step: int
    preempted: bool = False


@dataclass(frozen=True)
class WarningEvent:
    """What the user should read of `step`."""

    step: int
    text: str


Event = StepEvent | EvalEvent | SaveEvent | WarningEvent


@dataclass(frozen=True)
class TrainProgress:
    """The position of a run: all that a checkpoint holds beside weights and moments."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    evaluations_without_better: int = 0
    stopped: bool = False
    tokens: int = 0

    def with_patience(self, patience: int | None) -> "TrainProgress":
        """Return the progress of a run that waits for `patience` evaluations, and no fewer."""
        waits = patience is None or self.evaluations_without_better < patience
        return replace(self, stopped=False) if self.stopped and waits else self

    def is_better(self, value: float, metric: str, loss: float = math.inf) -> bool:
        """Return whether `value` of `metric` is better than the best so far."""
        best = self.best_value
        if value == best:
            return loss < (math.inf if self.best_loss is None else self.best_loss)
        return best is None or (value < best if lower_is_better(metric) else value > best)

    def after_evaluation(
        self,
        step: int,
        value: float,
        metric: str,
        patience: int | None,
        loss: float = math.inf,
    ) -> "TrainProgress":
        """Return the progress after an evaluation with that `value` of `metric`.

        loss: decides where the values are equal, as they often are on few rows.
        """
        if self.is_better(value, metric, loss):
            return replace(
                self,
                best_step=step,
                best_value=value,
                best_loss=loss if math.isfinite(loss) else None,
                evaluations_without_better=0,
            )
        waited = self.evaluations_without_better + 1
        stopped = patience is not None and waited >= patience
        return replace(self, evaluations_without_better=waited, stopped=stopped)
