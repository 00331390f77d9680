"""A recipe: every setting that decides what a training run computes.

A YAML file, or one of the shipped `recipes/`, changed by dotted `key=value` overrides; frozen, and
checked once at the door. Knows no torch and no Ray.

    python -m trainers --schema > recipe.schema.json      # for editors
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, model_validator

from cluster.costmodel.layout import Layout
from cluster.settings import Settings, SettingsError, override, read_yaml, validated
from trainers.config.sections import (
    SIZES,
    Batch,
    Checkpoints,
    Data,
    Distillation,
    Evaluation,
    Masking,
    Model,
    Optimizer,
    Schedule,
    Stopping,
)

__all__ = [
    "METRICS",
    "RANGES",
    "SHIPPED",
    "SIZES",
    "Batch",
    "Checkpoints",
    "Data",
    "Distillation",
    "Evaluation",
    "Masking",
    "Model",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Stopping",
    "Task",
    "load",
    "lower_is_better",
    "parse",
    "read",
    "schema",
]

SHIPPED = Path(__file__).parents[1] / "recipes"
RANGES = "tune"  # what a recipe file may hold beside its settings: see tuning/space/space.py

Task = Literal["classification", "multi-label", "regression", "masked-lm"]
METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("f1", "accuracy", "precision", "recall", "loss"),
    "multi-label": ("f1", "accuracy", "precision", "recall", "loss"),
    "regression": ("loss", "mae", "r2"),
    "masked-lm": ("loss", "accuracy", "perplexity"),
}

# A mapping is a layout, a word must be `auto`: each is checked as what it is, with one error.
AnyLayout = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Layout, Tag("explicit")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "explicit"),
]


class Recipe(Settings):
    """Everything that decides what a run computes. The hardware it runs on is the cluster's."""

    task: Task = Field("classification", description="what is learned")
    model: Model
    data: Data
    batch: Batch = Batch()
    masking: Masking = Masking()
    distillation: Distillation | None = Field(
        None, description="a teacher to learn from beside the labels; null: the labels alone"
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 autocast where the device computes it faster, else fp16 with loss "
        "scaling where that is faster",
    )
    layout: AnyLayout = Field(
        "auto", description="how devices share the work; it never changes the result"
    )
    parity: bool = Field(
        True,
        description="whether a run of several devices first computes a tiny batch on its layout "
        "and on one device, and ends if they differ",
    )
    evaluation: Evaluation = Evaluation()
    stopping: Stopping = Stopping()
    checkpoints: Checkpoints = Checkpoints()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of order, masks, dropout and fresh weights"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        metric = self.evaluation.metric
        if metric is not None and metric not in METRICS[self.task]:
            raise ValueError(
                f"evaluation.metric {metric!r} does not exist for {self.task}; "
                f"choose one of {', '.join(METRICS[self.task])}"
            )
        if self.task in ("regression", "masked-lm") and self.data.labels is not None:
            raise ValueError(f"data.labels names classes, but task is {self.task}; remove one")
        if self.task == "masked-lm" and self.model.name == "linear":
            raise ValueError(
                "task masked-lm guesses words, but model.name is linear, which reads numbers; "
                "set model.name: random, or the name of a BERT"
            )
        if self.task != "masked-lm" and self.masking != Masking():
            raise ValueError(
                f"masking belongs to masked-lm, but task is {self.task}; remove masking, or set "
                "task: masked-lm"
            )
        if self.task == "masked-lm" and self.distillation is not None:
            raise ValueError(
                f"distillation.teacher = {self.distillation.teacher!r}: task masked-lm has no "
                "teacher; remove distillation, or set the teacher's task"
            )
        if not self.data.validation and self.stopping.patience is not None:
            raise ValueError(
                "stopping.patience waits for evaluations, but data.validation is 0; "
                "hold rows out, or remove patience"
            )
        return self

    @property
    def metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        return self.evaluation.metric or METRICS[self.task][0]

    def rooted(self) -> "Recipe":
        """The recipe with names of files and directories here made absolute.

        Workers run in other directories than the one where the recipe was written.
        """
        return self.model_copy(
            update={
                "model": _rooted(self.model, "name", "tokenizer"),
                "data": _rooted(self.data, "source", "validation", "test"),
                "distillation": self.distillation and _rooted(self.distillation, "teacher"),
            }
        )

    def to_yaml(self) -> str:
        """The recipe with every default written out; `load` reads it back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is the better one."""
    return metric in ("loss", "mae", "perplexity")


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe `name`, a file or the name of a shipped one, and apply `key=value` overrides.

    Its ranges to search (`tune:`) are left alone. Raises SettingsError for a missing file, broken
    YAML, or anything wrong in the settings.
    """
    settings, origin = read(name, overrides)
    settings.pop(RANGES, None)
    return parse(settings, origin)


def read(name: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The plain settings of recipe `name` with its overrides, `tune:` among them, and its origin.

    Raises SettingsError for a missing file or broken YAML; what is in it is not checked.
    """
    path = _find(name)
    settings = read_yaml(path)
    for assignment in overrides:
        override(settings, assignment)
    return settings, path.name if path.parent == SHIPPED else str(path)


def parse(settings: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """A checked Recipe from plain settings. Raises SettingsError that lists every mistake."""
    return validated(Recipe, settings, origin)


def schema() -> str:
    """The JSON schema of a recipe, for editors."""
    described = Recipe.model_json_schema()
    described["properties"][RANGES] = {
        "type": "object",
        "description": "ranges that `python -m tuning` searches, by dotted key: `log 1e-6..1e-3`, "
        "`1..5` or a list",
    }
    return json.dumps(described, indent=2)


def _rooted(group: Settings, *names: str) -> Settings:
    held = {name: getattr(group, name) for name in names}
    here = {
        name: str(Path(value).resolve())
        for name, value in held.items()
        if isinstance(value, str) and Path(value).exists()
    }
    return group.model_copy(update=here)


def _find(name: str | Path) -> Path:
    path = Path(name)
    shipped = SHIPPED / path.with_suffix(".yaml").name
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    names = sorted(recipe.stem for recipe in SHIPPED.glob("*.yaml"))
    raise SettingsError(f"no recipe {str(name)!r}: give a file, or one of {', '.join(names)}")
