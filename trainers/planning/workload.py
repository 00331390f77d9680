"""A recipe as the hardware planner sees it: model sizes, steps, batches and lengths of its rows.

What a recipe leaves open about its data comes from options, from the record of an earlier run, or
from cluster/hardware/tables/datasets.csv, and the plan says which. Imports no torch.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.costmodel.memory import moment_kind
from cluster.costmodel.microbatches import Lengths
from cluster.costmodel.model_shape import ModelShape
from cluster.errors import BerthaError
from cluster.hardware.catalog import read_table
from cluster.planning.workload import Workload
from trainers.config import recipe as recipes
from trainers.config.data_section import DEFAULT_SHARE
from trainers.config.defaults import choose_settings
from trainers.config.recipe import Recipe
from trainers.planning.model_sizes import known_shape

DELIMITERS = {".csv": ",", ".tsv": "\t"}
COUNTED = (*DELIMITERS, ".jsonl", ".ndjson")  # whose lines are about their rows
MEASURED_ROWS = 1000  # of a file, whose characters are counted
# Of English in a BERT's word pieces, roughly; [CLS] and [SEP] stand around each text.
CHARACTERS_PER_TOKEN, SPECIAL_TOKENS = 4.5, 2


class WorkloadError(BerthaError):
    """A recipe whose size of work is unknown; the text says which option supplies it."""


@dataclass(frozen=True)
class RunLength:
    """How long a run is.

    rows: training rows; None where max_steps alone ends the run. lengths: tokens of rows.
    evaluated: rows evaluated for each one trained on.
    """

    steps: int
    lengths: Lengths
    eval_ratio: float = 0.0
    rows: int | None = None


def load_workload(
    name: str,
    overrides: Sequence[str] = (),
    rows: int | None = None,
    tokens: float | None = None,
    run: Path | None = None,
) -> Workload:
    """Return the workload of a recipe file or a shipped recipe, with `key=value` overrides.

    rows, and tokens of a row, replace what is known of the data; run is the directory of an earlier
    run on the same data. Raises SettingsError, WorkloadError or ModelSizesError.
    """
    recipe, stem = recipes.load_recipe(name, overrides), Path(name).stem
    if recipe.model.name == "linear":
        raise WorkloadError(f"{stem}: a linear model; it trains in seconds on any processor")
    rows, lengths, assumed = _data_size(recipe, rows, tokens, run)
    shape = known_shape(recipe)
    recipe = choose_settings(recipe, rows, shape.hidden_size).recipe
    length = _run_length(recipe, rows, lengths)
    return make_workload(stem, recipe, shape, length, assumed)


def make_workload(
    name: str, recipe: Recipe, shape: ModelShape, length: RunLength, assumed: tuple[str, ...] = ()
) -> Workload:
    """Return the workload of `recipe` training a model of `shape` for `length`."""
    batch, mean = recipe.batch, length.lengths.mean
    return Workload(
        name=name,
        shape=shape,
        steps=length.steps,
        global_batch=recipe.global_batch_size,
        max_length=batch.max_length,
        lengths=length.lengths,
        token_budget=batch.token_budget,
        masked_tokens=recipe.masking.share * mean if recipe.task == "masked-lm" else 0.0,
        precision=recipe.precision,
        optimizer=moment_kind(recipe.optimizer.name, recipe.optimizer.momentum),
        attention_dropout=recipe.model.attention_dropout > 0,
        eval_ratio=length.eval_ratio,
        rows=length.rows,
        assumed=assumed,
    )


def _run_length(recipe: Recipe, rows: int | None, lengths: Lengths) -> RunLength:
    size, epochs = recipe.global_batch_size, recipe.epochs
    steps = recipe.stopping.max_steps
    if rows is not None:
        whole = max(1, -(-rows // size)) * epochs
        steps = min(whole, steps or whole)
    if steps is None and Path(recipe.data.source).suffix.lower() in recipes.TABLES:
        raise WorkloadError(
            f"{recipe.data.source}: no such file here, so its number of rows is unknown; set "
            "data.source, or give --rows"
        )
    if steps is None:
        raise WorkloadError(
            f"{recipe.data.source}: its number of rows is unknown; give --rows, or "
            "stopping.max_steps"
        )
    held_out = DEFAULT_SHARE if recipe.data.validation == "auto" else recipe.data.validation
    evaluations = steps // (recipe.evaluation.every_steps or max(1, steps // epochs)) or 1
    held_rows = held_out * (rows or 0) if isinstance(held_out, float) else 0
    return RunLength(steps, lengths, evaluations * held_rows / (steps * size), rows)


def _data_size(
    recipe: Recipe, rows: int | None, tokens: float | None, run: Path | None
) -> tuple[int | None, Lengths, tuple[str, ...]]:
    """Return (training rows, their lengths, what was assumed)."""
    assumed: list[str] = []
    source, length, spread = recipe.data.source, recipe.batch.max_length, 1.0
    windows = recipe.data.windows
    longest = length if windows is None else length * windows.max_windows
    tokens = tokens if tokens is None else _computed_tokens(recipe, tokens)
    if run is not None:
        recorded = _read_run_record(run)
        rows = recorded[0] if rows is None else rows
        if tokens is None:
            _, tokens, spread = recorded
        assumed.append(f"rows and tokens as in {run / 'record.json'}")
    known = _find_dataset(recipe)
    if rows is None and known is not None and known["rows"]:
        rows = _training_rows(recipe, int(known["rows"]))
        assumed.append(f"{rows:,} training rows of {source} (datasets.csv)")
    if rows is None and Path(source).is_file() and Path(source).suffix.lower() in COUNTED:
        counted, characters = _measure_file(Path(source), recipe)
        rows = _training_rows(recipe, counted)
        assumed.append(f"{rows:,} training rows of the {counted:,} in {source}")
        if tokens is None and characters is not None and recipe.task != "masked-lm":
            tokens = _computed_tokens(recipe, characters / CHARACTERS_PER_TOKEN + SPECIAL_TOKENS)
            assumed.append(f"about {tokens:.0f} tokens a row, by the characters of the first rows")
    if recipe.task == "masked-lm":
        if tokens is None and known is not None and known["whole_tokens"]:
            tokens = float(known["whole_tokens"])
        return _pack_rows(rows, tokens, length, assumed)
    if tokens is None and known is not None and known["mean_tokens"]:
        measured_at, mean = int(known["measured_at"]), float(known["mean_tokens"])
        spread = float(known["spread"])
        if length <= measured_at:  # rows cut shorter cannot have more tokens
            tokens = _computed_tokens(recipe, mean)
            assumed.append(f"{tokens:.0f} tokens a row (datasets.csv, cut at {measured_at})")
    if tokens is None:
        tokens = float(length)
        assumed.append(f"every row fills batch.max_length, {length} tokens (say --tokens)")
    if windows is not None:
        assumed.append("long texts in windows, attention counted as if over whole texts")
    lengths = Lengths.assume_even(min(tokens, longest), longest)
    return rows, replace(lengths, spread=min(spread, lengths.spread)), tuple(assumed)


def _computed_tokens(recipe: Recipe, tokens: float) -> float:
    """Return the tokens that a text of `tokens` is computed as: it is cut, or read in windows."""
    windows, length = recipe.data.windows, recipe.batch.max_length
    if recipe.task == "masked-lm":
        return tokens
    return min(tokens, length) if windows is None else windows.computed_tokens(tokens, length)


def _pack_rows(
    rows: int | None, tokens: float | None, length: int, assumed: list[str]
) -> tuple[int | None, Lengths, tuple[str, ...]]:
    """Masked-lm packs texts end to end: rows become sequences, all of them full."""
    sequences = None if rows is None or not tokens else max(1, round(rows * tokens / length))
    if sequences is not None:
        assumed.append(f"{tokens:.0f} tokens a row, packed into {sequences:,} of {length}")
    return sequences, Lengths(float(length)), tuple(assumed)


def _find_dataset(recipe: Recipe) -> Mapping[str, str] | None:
    """Return the row of datasets.csv for this source and filter."""
    filters = set(recipe.data.filter.values())
    rows = [row for row in read_table("datasets") if row["source"] == recipe.data.source]
    exact = [row for row in rows if ({row["filter"]} if row["filter"] else set()) == filters]
    return next(iter(exact), None)


def _read_run_record(run: Path) -> tuple[int, float, float]:
    """Return the training rows of a run, their mean length and its spread."""
    try:
        data: dict[str, Any] = json.loads((run / "record.json").read_bytes())["data"]
        packed, lengths = data.get("sequences") or data["rows"], data["lengths"]
        return int(packed["train"]), float(lengths["mean"]), float(lengths.get("spread", 1.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WorkloadError(f"--run {run}: holds no record.json of a run") from None


def _training_rows(recipe: Recipe, total: int) -> int:
    """Return how many of `total` rows are trained on: those that are not held out."""
    total = min(total, recipe.data.max_rows or total)
    return round(total * (1 - recipe.data.held_out_share))


def _measure_file(path: Path, recipe: Recipe) -> tuple[int, float | None]:
    """Count the rows of a CSV or TSV file, the lines of any other.

    The second value is the mean number of characters of the text in the first rows; None where
    the file is no such table, or has no such column.
    """
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        if path.suffix.lower() not in DELIMITERS:
            return sum(1 for _ in lines), None
        delimiter = recipe.data.delimiter or DELIMITERS[path.suffix.lower()]
        rows = csv.reader(lines, delimiter=delimiter)
        header, named = next(rows, []), recipe.data.text
        texts = (named,) if isinstance(named, str) else named
        columns = [header.index(text) for text in texts if text in header]
        count, characters = 0, 0
        for count, row in enumerate(rows, 1):
            if count <= MEASURED_ROWS:
                characters += sum(len(row[each]) for each in columns if each < len(row))
    return count, characters / min(count, MEASURED_ROWS) if count and columns else None
