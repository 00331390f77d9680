"""A recipe's YAML read for planning: every name of it, and the values that arithmetic needs.

`python -m cluster` must not import the trainers, so that it runs where torch is not; the recipe is
checked in full by `python -m trainers`, here only what is read. A test holds the names equal.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.costmodel.model_shape import MASKED_SHARE
from cluster.settings import Settings, SettingsError, override, read_yaml, validated

SHIPPED = Path(__file__).parents[2] / "trainers" / "recipes"


class SketchedModel(Settings):
    name: str
    layers: tuple[int, ...] | None = None
    tokenizer: Any = None
    vocabulary_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    dropout: Any = None
    attention_dropout: float = 0.0


class SketchedData(Settings):
    source: str
    subset: Any = None
    filter: dict[str, Any] = Field({})
    text: Any = None
    label: Any = None
    label_separator: Any = None
    labels: tuple[Any, ...] | None = None
    cleaning: Any = None
    validation: float | str = 0.1
    test: float | str = 0.1
    max_rows: int | None = None


class SketchedBatch(Settings):
    global_size: int = Field(32, ge=1)
    max_length: int = Field(128, ge=8)
    token_budget: int | None = Field(None, ge=1)


class SketchedMasking(Settings):
    share: float = MASKED_SHARE
    whole_words: Any = None


class SketchedOptimizer(Settings):
    name: str = "adamw"
    learning_rate: Any = None
    weight_decay: Any = None
    momentum: float = 0.0
    betas: Any = None
    eps: Any = None
    max_grad_norm: Any = None


class SketchedEvaluation(Settings):
    every_steps: int | None = Field(None, ge=1)
    metric: Any = None


class SketchedStopping(Settings):
    epochs: int = Field(3, ge=1)
    max_steps: int | None = Field(None, ge=1)
    patience: Any = None


class Sketch(Settings):
    """The names of a recipe, and the values that arithmetic needs."""

    task: str = "classification"
    model: SketchedModel
    data: SketchedData
    distillation: Any = None
    batch: SketchedBatch = SketchedBatch()
    masking: SketchedMasking = SketchedMasking()
    optimizer: SketchedOptimizer = SketchedOptimizer()
    schedule: Any = None
    precision: str = "auto"
    layout: Any = "auto"
    parity: Any = None
    evaluation: SketchedEvaluation = SketchedEvaluation()
    stopping: SketchedStopping = SketchedStopping()
    checkpoints: Any = None
    seed: Any = None


def load(name: str, overrides: Sequence[str] = ()) -> tuple[str, Sketch]:
    """(its name, the sketch) of a recipe, a file or a shipped one, with `key=value` overrides.

    Raises SettingsError with every mistake, each with the way out.
    """
    path = _find(name)
    settings = read_yaml(path)
    for assignment in overrides:
        override(settings, assignment)
    return path.stem, validated(Sketch, settings, path.name)


def _find(name: str) -> Path:
    path = Path(name)
    shipped = SHIPPED / path.with_suffix(".yaml").name
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    names = sorted(recipe.stem for recipe in SHIPPED.glob("*.yaml"))
    close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    meant = f"; did you mean {close[0]}? Otherwise" if close else ";"
    raise SettingsError(f"no recipe {name!r}{meant} give a file, or one of {', '.join(names)}")
