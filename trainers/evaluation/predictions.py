"""The logits of held-out rows, and the file of them in the run directory.

Of large splits only an even selection of rows is kept; metrics are always those of all rows.
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from trainers.config.recipe import Task
from trainers.evaluation.intervals import Answers
from trainers.storage.atomic import atomic_file
from trainers.training.figures import select_rows as select_rows

PREDICTIONS_FILE = "predictions.npz"
FORMAT = 1


class EvaluationError(BerthaError):
    """Predictions that cannot be read or compared; the message says why and the way out."""


@dataclass(frozen=True)
class Predictions:
    """The logits of held-out rows.

    rows: [n] int64, their places in the split, rising. logits: [n, num_labels] float32, of a
    regression [n, 1] values in the unit of the targets. targets: those of the rows, as in
    `DatasetSplit`. total: rows of the split, of which n are kept.
    """

    rows: np.ndarray
    logits: np.ndarray
    targets: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.rows)

    def to_answers(self, task: Task, shift: np.ndarray | None = None) -> Answers:
        """Return what the model says of the rows. shift: see `Answers`."""
        return Answers(task, self.logits, self.targets, shift)


@dataclass(frozen=True)
class StoredPredictions:
    """The contents of RUN/predictions.npz.

    digests: [n] uint64 of text and label, by which rows of two runs are recognised. shift: see
    `Answers`, None where no threshold was tuned. metric: that of the run.
    """

    task: Task
    labels: tuple[str, ...]
    metric: str
    digests: np.ndarray
    predictions: Predictions
    shift: np.ndarray | None = None

    @property
    def answers(self) -> Answers:
        """What the model says of the rows."""
        return self.predictions.to_answers(self.task, self.shift)


def write_predictions(path: Path, stored: StoredPredictions) -> None:
    """Write RUN/predictions.npz, whole or not at all. Raises OSError."""
    about = {
        "format": FORMAT,
        "task": stored.task,
        "labels": stored.labels,
        "metric": stored.metric,
        "total": stored.predictions.total,
    }
    arrays: dict[str, Any] = {
        "about": np.array(json.dumps(about)),
        "digests": stored.digests,
        "rows": stored.predictions.rows,
        "logits": stored.predictions.logits,
        "targets": stored.predictions.targets,
    }
    if stored.shift is not None:
        arrays["shift"] = stored.shift
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_predictions(path: Path, run: str) -> StoredPredictions:
    """Read RUN/predictions.npz. run: its address, for errors.

    Raises EvaluationError where it is missing, as in runs of older versions, or damaged.
    """
    if not path.is_file():
        raise EvaluationError(
            f"{run}: no {PREDICTIONS_FILE}, which a run leaves when it has ended and its texts "
            "could be read again; train it again into a new directory"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            rows, logits, targets = (arrays[name] for name in ("rows", "logits", "targets"))
            digests = arrays["digests"]
            shift = arrays["shift"] if "shift" in arrays.files else None
        if about["format"] != FORMAT or not len(rows) == len(logits) == len(targets):
            raise ValueError("of another format")
        predictions = Predictions(rows, logits, targets, int(about["total"]))
        labels, metric = tuple(about["labels"]), str(about["metric"])
        return StoredPredictions(about["task"], labels, metric, digests, predictions, shift)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); train the run again into a new directory"
        ) from None
