"""The run directory: what a run leaves behind, and from what it can be repeated.

    recipe.yaml       every setting, defaults written out
    record.json       data fingerprint and report, code revision, versions, hardware, workers,
                      layout and the receipt of its parity with one device
    metrics.jsonl     one row a start, step, evaluation, or notice that a machine is about to leave;
                      a start says what was lost
    tensorboard/      the same as events          plots/    the same as pictures
    checkpoints/      to go on from               bundle/   the trained model
    result.json       the outcome; there when the run has ended

Knows no model and no Ray.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cluster.errors import BerthaError
from cluster.settings import SettingsError
from trainers import recipe as recipes
from trainers.events import Evaluation, Step
from trainers.recipe import Recipe
from trainers.sealed import write_file

# May change when resumed: they change no result.
PERFORMANCE = ("layout", "batch.token_budget", "parity")


class RunError(BerthaError):
    """A run directory that cannot be used; the text says the way out."""


@dataclass(frozen=True)
class RunDirectory:
    """The names inside a run directory."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def facts(self) -> Path:
        """From what the run can be repeated."""
        return self.path / "record.json"

    @property
    def checkpoints(self) -> Path:
        """See `checkpoint`."""
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        """See `bundle`."""
        return self.path / "bundle"

    @property
    def refusal(self) -> Path:
        """Why the run cannot go on until its user mends something; absent otherwise."""
        return self.path / "error.txt"

    def claim(self, recipe: Recipe, resume: bool) -> None:
        """Make the directory this run's own, or check that it may be resumed.

        Raises RunError when it holds another run, or this one and `resume` is not asked for.
        """
        held = self.path / "recipe.yaml"
        if not held.is_file():
            self.path.mkdir(parents=True, exist_ok=True)
            write_file(held, recipe.to_yaml())
            return
        if not resume:
            raise RunError(
                f"{self.path} holds a run already; --resume goes on with it, --run names another"
            )
        try:
            before = recipes.load(held)
        except SettingsError as error:
            raise RunError(f"cannot resume {self.path}: {error}") from None
        differing = _differences(before.model_dump(), recipe.model_dump())
        changed = [key for key in differing if not key.startswith(PERFORMANCE)]
        if changed:
            raise RunError(
                f"cannot resume {self.path}: its recipe differs in {', '.join(changed)}; "
                "resume with the same settings, or name another directory with --run"
            )

    def rows(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, of one kind or all; a half-written last line is left out."""
        if not self.metrics.is_file():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if kind is None or row["kind"] == kind:
                yield row

    def record(self) -> dict[str, Any]:
        """What the last start wrote of its circumstances; {} before the first."""
        return dict(json.loads(self.facts.read_text())) if self.facts.is_file() else {}

    def result(self) -> dict[str, Any] | None:
        """The outcome, once the run has ended."""
        path = self.path / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None


class Recorder:
    """Writes metrics.jsonl and TensorBoard events while a run goes on.

    lost_steps: that were computed beyond the checkpoint it goes on from, and are computed again.
    lost_seconds: that they took.
    """

    def __init__(self, run: RunDirectory, resumed_at: int) -> None:
        """Open for appending; rows after step `resumed_at` belong to a lost future and go."""
        rows = list(run.rows())
        kept = [row for row in rows if row["step"] <= resumed_at]
        lost = [row for row in rows if row["kind"] == "step" and row["step"] > resumed_at]
        self.lost_steps = max([0, *(row["step"] - resumed_at for row in lost)])
        self.lost_seconds = float(sum(row["seconds"] for row in lost))
        write_file(run.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = run.metrics.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=resumed_at + 1)

    def start(self, **facts: Any) -> None:
        """A row that says from which step, and with what, the run goes on."""
        self._write("start", facts)

    def record(self, event: Step | Evaluation) -> None:
        """A row of what happened."""
        if isinstance(event, Step):
            self.step(event)
        else:
            self.evaluation(event)

    def step(self, step: Step) -> None:
        """A row of one optimizer step."""
        row = asdict(step)
        row["tokens_per_second"] = step.tokens / step.seconds
        row["padding_share"] = 1 - step.tokens / step.computed_tokens
        self._write("step", row)
        for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second", "padding_share"):
            self._events.add_scalar(f"train/{name}", row[name], step.step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """A row of one evaluation."""
        self._write("evaluation", asdict(evaluation))
        for name, value in evaluation.metrics.items():
            if isinstance(value, float):
                self._events.add_scalar(f"validation/{name}", value, evaluation.step)

    def notice(self, step: int) -> None:
        """A row that says that a machine is about to leave, and that `step` is saved."""
        self._write("notice", {"step": step})

    def close(self) -> None:
        """Flush everything."""
        self._lines.close()
        self._events.close()

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._lines.write(json.dumps({"kind": kind, **row, "time": time.time()}) + "\n")
        self._lines.flush()


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    found = []
    for key, value in now.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            found += _differences(before[key], value, f"{prefix}{key}.")
        elif before.get(key) != value:
            found.append(prefix + key)
    return found
