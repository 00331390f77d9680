"""Predict the rows of a table: any number of them, in their order, in flat memory.

summary = predict_files(engine, ["rows.csv"], "answers.csv")

Rows are read in windows. Those of a window are sorted by length, so that texts computed together
are about as long, packed into full batches, and written in their own order.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import BerthaError
from serving.batch.answers import AnswerColumns
from serving.batch.outputs import Rows, check_output, open_output, open_stdout
from serving.engine.engine import Engine, batch_rows, split_rows
from trainers.data import readers
from trainers.data.rows.delimited import DEFAULT_DIALECT, Dialect
from trainers.data.sources import join_text
from trainers.data.tables import Place, Table, cell_at, list_tables, open_table
from trainers.models.card import ModelCard

WINDOW_ROWS = 1024
MAX_NAMED_ROWS = 5  # of those that were cut
WINDOW_CHARACTERS = 8_000_000  # of texts; a window holds at least one row

OnProgress = Callable[[int, int], None]  # rows answered, of how many


class PredictionError(BerthaError):
    """A text that the model has no answer for; the message says where it is."""


@dataclass(frozen=True)
class WindowAnswers:
    """The values of a window's texts, None for those that hold nothing.

    cut: by place the texts that are longer than the model reads.
    """

    values: list[Any]
    cut: tuple[int, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What became of the rows of a table.

    rows: that were answered or hold no text. empty: of them those without text, whose answers are
    empty. cut: those whose text was longer than the model reads; cut_rows: the first of them, by
    number from 1. skipped: a sentence for each kind
    of row that could not be read. seconds: that it took.
    """

    rows: int
    empty: int = 0
    cut: int = 0
    cut_rows: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    def describe(self, max_tokens: int) -> list[str]:
        """Return a sentence for each thing that a reader of the answers should know.

        max_tokens: of the longest text that is read whole.
        """
        notes = list(self.skipped)
        if self.empty:
            notes.append(f"{self.empty:,} without text: their answers are empty")
        if self.cut:
            dots = ", …" if self.cut > len(self.cut_rows) else ""
            which = ", ".join(f"{row:,}" for row in self.cut_rows)
            notes.append(
                f"{self.cut:,} longer than {max_tokens} tokens: the rest was not read "
                f"(row{'s' * (self.cut > 1)} {which}{dots})"
            )
        return notes


def ignore_progress(done: int, total: int) -> None:
    """Report nothing."""


def offset_progress(on_progress: OnProgress, done: int, total: int) -> Callable[[int], None]:
    """Return a callback that reports `done` rows more than it is called with."""
    return lambda more: on_progress(done + more, total)


def load_on_all_cores(directory: Path, name: str | None = None) -> Engine:
    """Load the engine of a bundle on every core of this machine. name: as of `Engine.load`."""
    return Engine.load(directory, name, num_threads=len(os.sched_getaffinity(0)))


def text_columns(card: ModelCard, named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns that make a text: those named, else those that the bundle's recipe has."""
    if named:
        return tuple(named)
    columns = card.recipe.get("data", {}).get("text", "text")
    return (columns,) if isinstance(columns, str) else tuple(columns)


def predict_files(
    engine: Engine,
    sources: Sequence[str],
    out: str | None,
    *,
    text: Sequence[str] = (),
    prefix: str = "",
    overwrite: bool = False,
    dialect: Dialect = DEFAULT_DIALECT,
    on_progress: OnProgress = ignore_progress,
) -> Summary:
    """Predict the rows of files and directories and write them, with the answers, to one file.

    out: a path or s3://, in the format of its suffix; None: CSV on the standard output. text: the
    columns that make a text; default: those of the bundle's recipe. prefix: before the names of
    the new columns. dialect: how CSV and TSV are written. on_progress: called after each batch.
    Raises BerthaError; then no file is left behind.
    """
    plan = plan_prediction(engine.card, sources, out, text, prefix, overwrite, dialect)
    started, summary = time.monotonic(), Summary(0, skipped=plan.table.skipped)
    with plan.open_output() as write_rows:
        for window in iter_windows(plan.table.iter_rows(), plan.places):
            report = offset_progress(on_progress, summary.rows, plan.table.num_rows)
            answers = answer_texts(engine, window.texts, summary.rows, report)
            write_rows(plan.add_answers(window.rows, answers.values))
            summary = count_answers(summary, answers)
            report(len(window.rows))
    return replace(summary, seconds=time.monotonic() - started)


@dataclass(frozen=True)
class PredictionPlan:
    """A table, the columns that make its texts, and what is written where.

    places: of the columns of the texts. out: None for the standard output.
    """

    table: Table
    places: tuple[Place, ...]
    columns: AnswerColumns
    out: str | None
    schema: Any  # pyarrow.Schema, of what is written

    def open_output(self) -> Any:
        """Return the context of a function that writes rows."""
        return open_stdout(self.schema) if self.out is None else open_output(self.out, self.schema)

    def add_answers(self, rows: Rows, values: Sequence[Any]) -> Rows:
        """Return the rows with the cells of their values behind."""
        return [
            (*row, *self.columns.format_value(value))
            for row, value in zip(rows, values, strict=True)
        ]


def plan_prediction(
    card: ModelCard,
    sources: Sequence[str],
    out: str | None,
    text: Sequence[str] = (),
    prefix: str = "",
    overwrite: bool = False,
    dialect: Dialect = DEFAULT_DIALECT,
) -> PredictionPlan:
    """Check everything that can be known before a text is computed. Raises BerthaError."""
    is_flat = out is None or readers.table_format(out) in ("csv", "tsv")
    columns = AnswerColumns.of_card(card, is_flat, prefix)
    if out is not None:
        check_output(out, list_tables(sources), overwrite)
    table = open_table(sources, dialect)
    places = table.find_columns(text_columns(card, text), "--text")
    schema = columns.extend_schema(table.schema, table.sources[0])
    return PredictionPlan(table, tuple(places), columns, out, schema)


@dataclass(frozen=True)
class Window:
    """Rows of a table, and the text of each; None where it has none."""

    rows: list[tuple[Any, ...]]
    texts: list[str | None]


def iter_windows(
    rows: Iterable[tuple[Any, ...]], places: Sequence[Place], num_rows: int = WINDOW_ROWS
) -> Iterator[Window]:
    """Cut rows into windows of bounded size. places: of the columns that make a text."""
    window, characters = Window([], []), 0
    for row in rows:
        text, _ = join_text([cell_at(row, place) for place in places])
        window.rows.append(row)
        window.texts.append(text)
        characters += len(text or "")
        if len(window.rows) >= num_rows or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = Window([], []), 0
    if window.rows:
        yield window


def answer_texts(
    engine: Engine,
    texts: Sequence[str | None],
    first_row: int = 0,
    on_texts: Callable[[int], None] = lambda done: None,
) -> WindowAnswers:
    """Compute a window of raw texts, the shorter ones first.

    first_row: how many rows are before. on_texts: called after each batch with how many are done.
    Raises PredictionError, and EncodingError of a text that the encoder cannot read.
    """
    cleaned = [None if text is None else engine.clean(text) for text in texts]
    present = [place for place, text in enumerate(cleaned) if text]
    values: list[Any] = [None] * len(texts)
    if not present:
        return WindowAnswers(values)
    samples, is_cut = engine.encode_cleaned([cleaned[place] or "" for place in present])
    order, rows = np.argsort(samples.sequences.lengths, kind="stable"), split_rows(samples)
    of_rows: list[Any] = [None] * len(rows)
    done = 0
    for batch in batch_rows([rows[place] for place in order], engine.batch_tokens):
        try:
            computed = engine.infer_rows(batch)
        except FloatingPointError as error:
            raise PredictionError(
                f"rows {first_row + 1} to {first_row + len(texts)}: {error}; the model was damaged "
                "in training: train again with a lower optimizer.learning_rate"
            ) from None
        for place, value in zip(order[done : done + len(batch)], computed, strict=True):
            of_rows[place] = value
        done += len(batch)
        on_texts(done * len(present) // len(rows))
    for place, value in zip(present, engine.pool_windows(of_rows, samples), strict=True):
        values[place] = value
    return WindowAnswers(values, tuple(present[place] for place in np.flatnonzero(is_cut)))


def count_answers(summary: Summary, answers: WindowAnswers) -> Summary:
    """Return the summary with one more window."""
    cut = tuple(summary.rows + place + 1 for place in answers.cut)
    return replace(
        summary,
        rows=summary.rows + len(answers.values),
        empty=summary.empty + sum(value is None for value in answers.values),
        cut=summary.cut + len(cut),
        cut_rows=(*summary.cut_rows, *cut)[:MAX_NAMED_ROWS],
    )
