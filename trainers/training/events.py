"""What happens in a run, as values: steps, evaluations, moments to save, and the position."""

from dataclasses import dataclass, replace

from trainers.config.recipe import lower_is_better
from trainers.training.metrics import Metrics


@dataclass(frozen=True)
class Step:
    """One optimizer step. tokens are those of the texts; computed adds the padding."""

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


@dataclass(frozen=True)
class Evaluation:
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
class Save:
    """The moment to write a checkpoint of `step`.

    leaving: because a machine of the run is about to be taken away.
    """

    step: int
    leaving: bool = False


Event = Step | Evaluation | Save


@dataclass(frozen=True)
class Progress:
    """Where a run is: all that a checkpoint must know beside weights and moments."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_better: int = 0
    stopped: bool = False
    tokens: int = 0

    def after(self, step: int, value: float, metric: str, patience: int | None) -> "Progress":
        """The progress after an evaluation that gave `value`."""
        best = self.best_value
        better = best is None or (value < best if lower_is_better(metric) else value > best)
        if better:
            return replace(self, best_step=step, best_value=value, evaluations_without_better=0)
        waited = self.evaluations_without_better + 1
        stopped = patience is not None and waited >= patience
        return replace(self, evaluations_without_better=waited, stopped=stopped)
