"""Evaluate a bundle on labelled rows: figures with their intervals, each class, and the errors.

evaluation = evaluate_files(engine, ["labelled.csv"])
evaluation.figures["f1"]                 # Figure(value=0.93, low=0.88, high=0.96)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import pyarrow
import torch

from cluster.errors import BerthaError
from serving.batch.answers import PREFIX
from serving.batch.outputs import check_output, open_output
from serving.batch.predict import (
    OnProgress,
    answer_texts,
    ignore_progress,
    iter_windows,
    offset_progress,
    text_columns,
)
from serving.engine.engine import Engine
from serving.interface import Prediction
from serving.protocols.labels import choose_labels
from trainers.config.data_section import DataConfig
from trainers.config.recipe import Task
from trainers.data import labels as labelling
from trainers.data.labels import Label
from trainers.data.rows.delimited import DEFAULT_DIALECT, Dialect
from trainers.data.rows.skips import SkipCounter
from trainers.data.tables import Place, Table, cell_at, list_tables, open_table
from trainers.evaluation.calibration import thresholds_to_shift
from trainers.evaluation.intervals import Answers, bootstrap_intervals, compute_figures
from trainers.models.card import ModelCard
from trainers.training.metrics import MetricAccumulator

MAX_NAMED = 5  # labels in one error
ANSWER, CONFIDENCE, ERROR = "answer", "confidence", "error"


class LabelledRowsError(BerthaError):
    """Rows that a bundle cannot be evaluated on; the message says why, and the way out."""


@dataclass(frozen=True)
class Figure:
    """A figure of all rows, and the interval that holds it in 95% of such samples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """How good a bundle is on labelled rows.

    rows: that were answered. skipped: a sentence for each kind of row that was not. figures: by
    name. per_class: precision, recall, f1 and support of each label; {} of a regression. confusion:
    counts [true][predicted], of more than 100 classes {true, predicted, rows} of the pairs that
    there are, of multi-label [label][true][predicted]; [] of a regression.
    """

    rows: int
    skipped: tuple[str, ...]
    figures: dict[str, Figure]
    per_class: dict[str, dict[str, float]]
    confusion: Any

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain values."""
        return asdict(self) | {"skipped": list(self.skipped)}


@dataclass(frozen=True)
class _LabelledRows:
    """The rows of a table that have a label: where they are, and their targets."""

    table: Table
    text_places: tuple[Place, ...]
    is_labelled: np.ndarray  # [n] bool
    targets: np.ndarray
    skipped: tuple[str, ...]


def evaluate_files(
    engine: Engine,
    sources: Sequence[str],
    *,
    text: Sequence[str] = (),
    label: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    dialect: Dialect = DEFAULT_DIALECT,
    on_progress: OnProgress = ignore_progress,
) -> Evaluation:
    """Answer the labelled rows of files and directories, and compare.

    text, label: columns; default: those of the bundle's recipe. out: a file for the rows that are
    answered wrongly, the worst first (of a regression: for all rows). The thresholds of the card
    apply. Rows without text or label are left out and counted. Raises BerthaError, as for labels
    that the bundle does not know, before anything is computed.
    """
    card = engine.card
    if card.task in ("masked-lm", "embedding"):
        raise LabelledRowsError(
            f"a bundle for {card.task} has no labels to compare with; evaluate one for "
            "classification, multi-label or regression"
        )
    if out is not None:
        check_output(out, list_tables(sources), overwrite)
    rows = _read_labels(card, open_table(sources, dialect), text, label)
    answered, places, num_empty = _answer_rows(engine, rows, on_progress)
    if not answered:
        raise LabelledRowsError(f"{rows.table.sources[0]}: no row has both a text and a label")
    skipped = rows.skipped + ((f"{_count_rows(num_empty)}: no text",) if num_empty else ())
    targets = rows.targets[places]
    if out is not None:
        _write_errors(out, card, rows, answered, places)
    return _evaluate_answers(card, answered, targets, skipped)


def _read_labels(
    card: ModelCard, table: Table, text: Sequence[str], label: str | None
) -> _LabelledRows:
    """Read the label column of a table, and check that the bundle knows its labels."""
    data = DataConfig(**card.recipe["data"])
    # An older bundle may have a class None.
    missing = tuple(text for text in data.missing if text not in card.labels)
    data = data.model_copy(update={"missing": missing})
    if label is not None:
        data = data.model_copy(update={"label": label})
    named = ", ".join(data.label_columns)
    text_places = table.find_columns(text_columns(card, text), "--text")
    places = table.find_columns(data.label_columns, "--label")
    cells = [tuple(cell_at(row, place) for place in places) for row in table.iter_rows()]
    raw = cells if len(places) > 1 else [cell for (cell,) in cells]
    numbers = list(range(1, len(raw) + 1))
    skips = SkipCounter("row")
    assert card.task != "embedding"
    parsed = labelling.parse_cells(raw, numbers, card.task, data, skips)
    _check_labels(card, table, named, parsed)
    present = np.array([each is not None for each in parsed], dtype=bool)
    targets = labelling.build_targets(
        [each for each in parsed if each is not None],
        card.task,
        card.labels,
        lambda row: f"row {row + 1}",
    )
    spread = np.zeros((len(parsed), *targets.shape[1:]), dtype=targets.dtype)
    spread[present] = targets
    skipped = tuple(
        f"{_count_rows(skip.rows)}: {skip.reason} (first: {skip.first})"
        for skip in skips.list_reasons()
    )
    return _LabelledRows(table, tuple(text_places), present, spread, table.skipped + skipped)


def _count_rows(number: int) -> str:
    return f"{number:,} row{'s' * (number != 1)} left out"


def _check_labels(
    card: ModelCard, table: Table, column: str, labels: Sequence[Label | None]
) -> None:
    """Raise LabelledRowsError that names the labels which the bundle does not know."""
    if card.task == "regression":
        return
    names = (name for each in labels if isinstance(each, tuple) for name in each)
    unknown = Counter(name for name in names if name not in card.labels)
    if not unknown:
        return
    shown = ", ".join(f"{name[:60]!r} ({rows:,})" for name, rows in unknown.most_common(MAX_NAMED))
    more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
    known = ", ".join(map(repr, card.labels[:MAX_NAMED]))
    dots = ", ..." if len(card.labels) > MAX_NAMED else ""
    raise LabelledRowsError(
        f"{table.sources[0]}: column {column!r} holds labels that the model does not know: "
        f"{shown}{more}; it knows {known}{dots}: rename them, leave their rows out, or name the "
        "right column with --label"
    )


def _answer_rows(
    engine: Engine, rows: _LabelledRows, on_progress: OnProgress
) -> tuple[list[Prediction], np.ndarray, int]:
    """Return the answers to rows with label and text, where those are, and how many lack text."""
    answered: list[Prediction] = []
    places: list[int] = []
    num_empty = start = 0
    for window in iter_windows(rows.table.iter_rows(), rows.text_places):
        wanted = np.flatnonzero(rows.is_labelled[start : start + len(window.rows)])
        texts = [window.texts[place] for place in wanted]
        report = offset_progress(on_progress, start, rows.table.num_rows)
        values = answer_texts(engine, texts, start, report).values
        for place, value in zip(wanted, values, strict=True):
            if value is None:
                num_empty += 1
            else:
                answered.append(value)
                places.append(start + int(place))
        start += len(window.rows)
        on_progress(start, rows.table.num_rows)
    return answered, np.array(places, dtype=np.int64), num_empty


def _evaluate_answers(
    card: ModelCard, answered: Sequence[Prediction], targets: np.ndarray, skipped: tuple[str, ...]
) -> Evaluation:
    task = cast(Task, card.task)  # an embedding was refused
    is_number = card.task == "regression"
    outputs = np.array([each.scores if is_number else each.logits for each in answered])
    answers = Answers(task, outputs, targets, thresholds_to_shift(card.thresholds, card.labels))
    values, intervals = compute_figures(answers), bootstrap_intervals(answers)
    figures = {
        name: Figure(value, *intervals[name]) for name, value in values.items() if name in intervals
    }
    if is_number:
        return Evaluation(len(answered), skipped, figures, {}, [])
    names = card.labels
    accumulator = MetricAccumulator(task, len(names))
    chosen = [choose_labels(each.scores, names, card.task, card.thresholds) for each in answered]
    decided = np.array([[1.0 if name in given else -1.0 for name in names] for given in chosen])
    accumulator.add_batch(torch.from_numpy(decided), torch.from_numpy(targets))
    counted = accumulator.compute_metrics(card.labels)
    confusion = counted.get("confusion", [])
    return Evaluation(len(answered), skipped, figures, counted["per_class"], confusion)


def _write_errors(
    out: str,
    card: ModelCard,
    rows: _LabelledRows,
    answered: Sequence[Prediction],
    places: np.ndarray,
) -> None:
    """Write the rows that are answered wrongly, with the answer, the worst first."""
    table = rows.table
    found: list[tuple[float, int, tuple[Any, ...]]] = []
    for place, answer in zip(places, answered, strict=True):
        wrong, cells = _judge_answer(card, answer, rows.targets[place])
        if wrong > 0:
            found.append((wrong, int(place), cells))
    found.sort(key=lambda each: (-each[0], each[1]))
    wanted = {place for _, place, _ in found}
    kept = {place: row for place, row in enumerate(table.iter_rows()) if place in wanted}
    number, text = pyarrow.float64(), pyarrow.string()
    added = {ANSWER: number, ERROR: number}
    if card.task != "regression":
        added = {ANSWER: text, CONFIDENCE: number}
    schema = table.schema
    for name, kind in added.items():
        taken = name in schema.names
        schema = schema.append(pyarrow.field(f"{PREFIX * taken}{name}", kind))
    with open_output(out, schema) as write_rows:
        write_rows([(*kept[place], *cells) for _, place, cells in found])


def _judge_answer(
    card: ModelCard, answer: Prediction, target: Any
) -> tuple[float, tuple[Any, ...]]:
    """Return how wrong an answer is, 0 for a right one, and its cells.

    classification, multi-label: the probability that the model gives the truth is that far from 1,
    for the worst label. regression: the absolute error.
    """
    if card.task == "regression":
        error = answer.scores[0] - float(target)
        return abs(error), (answer.scores[0], error)
    names = choose_labels(answer.scores, card.labels, card.task, card.thresholds)
    scores = dict(zip(card.labels, answer.scores, strict=True))
    if card.task == "classification":
        truth = card.labels[int(target)]
        wrong = 1 - scores[truth] if names != (truth,) else 0.0
        return wrong, (names[0], scores[names[0]])
    true = {name for name, is_given in zip(card.labels, target, strict=True) if is_given}
    differing = true ^ set(names)
    wrong = max((abs(scores[name] - (name in true)) for name in differing), default=0.0)
    certainty = min(score if name in names else 1 - score for name, score in scores.items())
    separator = str(card.recipe["data"]["label_separator"])
    return wrong, (separator.join(names), certainty)
