"""What a recipe asks of hardware, read off its YAML: the model's sizes, steps, batches, data.

What the recipe does not say of its data (rows, tokens a row) comes from options, from a run's
record.json, or from cluster/hardware/tables/datasets.csv, and it is said which. Knows no hardware.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.costmodel.memory import optimizer_of
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import Shape
from cluster.errors import BerthaError
from cluster.hardware.catalog import table
from cluster.planning.model_sizes import shape_of
from cluster.planning.recipe_reader import Sketch, load


class DemandError(BerthaError):
    """A recipe whose work cannot be told; the text says what to give."""


@dataclass(frozen=True)
class Extent:
    """How long a run is. rows: of training; None where steps alone decide.

    lengths: of rows. evaluated: samples that are evaluated for each one trained on.
    """

    steps: int
    lengths: Lengths
    evaluated: float
    rows: int | None


@dataclass(frozen=True)
class Demand:
    """A run, wherever it goes. rows: of training; None where steps alone decide.

    lengths: of rows, cut at max_length. assumed: what nobody said, in words.
    """

    name: str
    shape: Shape
    steps: int
    global_batch: int
    max_length: int
    lengths: Lengths
    token_budget: int | None
    masked: float
    precision: str
    optimizer: str
    attention_dropout: bool
    evaluated: float
    rows: int | None
    assumed: tuple[str, ...]

    @property
    def mean_tokens(self) -> float:
        """Of a row."""
        return self.lengths.mean

    @property
    def tokens(self) -> float:
        """Trained on in the whole run, padding not counted."""
        return self.steps * self.global_batch * self.mean_tokens


def read(
    name: str,
    overrides: Sequence[str] = (),
    rows: int | None = None,
    tokens: float | None = None,
    run: Path | None = None,
) -> Demand:
    """The demand of a recipe, a file or the name of a shipped one, with `key=value` overrides.

    rows and tokens (a row) override what is known of the data; run: a run directory whose record
    tells. Raises SettingsError or DemandError, with the way out.
    """
    stem, sketch = load(name, overrides)
    if sketch.model.name == "linear":
        raise DemandError(f"{stem}: a linear model; it trains in seconds on any processor")
    rows, lengths, assumed = _data(sketch, rows, tokens, run)
    return of(stem, sketch, shape_of(sketch), _extent(sketch, rows, lengths), assumed)


def of(
    name: str, sketch: Sketch, shape: Shape, extent: Extent, assumed: tuple[str, ...] = ()
) -> Demand:
    """The demand of a recipe that trains `shape` for so long."""
    batch, mean = sketch.batch, extent.lengths.mean
    return Demand(
        name=name,
        shape=shape,
        steps=extent.steps,
        global_batch=batch.global_size,
        max_length=batch.max_length,
        lengths=extent.lengths,
        token_budget=batch.token_budget,
        masked=sketch.masking.share * mean if sketch.task == "masked-lm" else 0.0,
        precision=sketch.precision,
        optimizer=optimizer_of(sketch.optimizer.name, sketch.optimizer.momentum),
        attention_dropout=sketch.model.attention_dropout > 0,
        evaluated=extent.evaluated,
        rows=extent.rows,
        assumed=assumed,
    )


def _extent(sketch: Sketch, rows: int | None, lengths: Lengths) -> Extent:
    batch, stopping = sketch.batch, sketch.stopping
    steps = stopping.max_steps
    if rows is not None:
        whole = max(1, rows // batch.global_size) * stopping.epochs
        steps = min(whole, steps or whole)
    if steps is None:
        raise DemandError(
            f"{sketch.data.source}: nobody knows how many rows it has; give --rows, or "
            "stopping.max_steps"
        )
    held_out = sketch.data.validation
    evaluations = steps // (sketch.evaluation.every_steps or max(1, steps // stopping.epochs)) or 1
    held_rows = held_out * (rows or 0) if isinstance(held_out, float) else 0
    return Extent(steps, lengths, evaluations * held_rows / (steps * batch.global_size), rows)


def _data(
    sketch: Sketch, rows: int | None, tokens: float | None, run: Path | None
) -> tuple[int | None, Lengths, tuple[str, ...]]:
    """(training rows, their lengths, what was assumed)."""
    assumed: list[str] = []
    length, spread = sketch.batch.max_length, 1.0
    if run is not None:
        told = _record(run)
        packed = told.get("sequences") or told["rows"]
        rows = int(packed["train"]) if rows is None else rows
        if tokens is None:
            tokens, spread = float(told["lengths"]["mean"]), told["lengths"].get("spread", 1.0)
        assumed.append(f"rows and tokens as in {run / 'record.json'}")
    known = _known(sketch)
    if rows is None and known is not None and known["rows"]:
        total = min(int(known["rows"]), sketch.data.max_rows or 10**12)
        parts = (sketch.data.validation, sketch.data.test)
        rows = round(total * (1 - sum(p for p in parts if isinstance(p, float))))
        assumed.append(f"{rows:,} training rows of {sketch.data.source} (datasets.csv)")
    if rows is None and Path(sketch.data.source).is_file():
        rows = _lines(Path(sketch.data.source))
        assumed.append(f"a row a line of {sketch.data.source}: {rows:,}")
    if sketch.task == "masked-lm":
        return _packed(rows, tokens or _whole(known), length, assumed)
    if tokens is None and known is not None and known["mean_tokens"]:
        measured_at, mean = int(known["measured_at"]), float(known["mean_tokens"])
        spread = float(known["spread"])
        if length <= measured_at:  # what is cut shorter cannot have more
            tokens = min(mean, length)
            assumed.append(f"{tokens:.0f} tokens a row (datasets.csv, cut at {measured_at})")
    if tokens is None:
        tokens = float(length)
        assumed.append(f"every row fills batch.max_length, {length} tokens (say --tokens)")
    lengths = Lengths.unknown(min(tokens, length), length)
    return rows, replace(lengths, spread=min(spread, lengths.spread)), tuple(assumed)


def _packed(
    rows: int | None, whole: float | None, length: int, assumed: list[str]
) -> tuple[int | None, Lengths, tuple[str, ...]]:
    """Of masked-lm, which packs texts end to end: rows become sequences, all of them full."""
    sequences = None if rows is None or whole is None else max(1, round(rows * whole / length))
    if sequences is not None:
        assumed.append(f"{whole:.0f} tokens a row, packed into {sequences:,} of {length}")
    return sequences, Lengths(float(length)), tuple(assumed)


def _whole(known: Mapping[str, str] | None) -> float | None:
    """Tokens of a row before it is cut, where known."""
    return float(known["whole_tokens"]) if known and known["whole_tokens"] else None


def _known(sketch: Sketch) -> Mapping[str, str] | None:
    """The row of datasets.csv for this source and filter."""
    filters = {str(value) for value in sketch.data.filter.values()}
    rows = [row for row in table("datasets") if row["source"] == sketch.data.source]
    exact = [row for row in rows if ({row["filter"]} if row["filter"] else set()) == filters]
    return next(iter(exact), None)


def _record(run: Path) -> Mapping[str, Any]:
    try:
        data: Mapping[str, Any] = json.loads((run / "record.json").read_text())["data"]
    except (OSError, ValueError, KeyError):
        raise DemandError(f"--run {run}: holds no record.json of a run") from None
    return data


def _lines(path: Path) -> int:
    """Rows of a CSV file; lines of any other."""
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        if path.suffix == ".csv":
            return sum(1 for _ in csv.reader(lines)) - 1
        return sum(1 for _ in lines)
