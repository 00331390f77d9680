"""A recipe: every setting that decides what a training run computes.

A YAML file, or one of the shipped `recipes/`, changed by dotted `key=value` overrides; frozen, and
checked once at the door.

    bertha train --schema > recipe.schema.json      # for editors
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from cluster.costmodel.layout import Layout
from cluster.settings import Settings, SettingsError, apply_override, read_yaml, validate_settings
from cluster.yaml_schema import dump_yaml
from trainers.config import trainer_names
from trainers.config.data_section import DataConfig
from trainers.config.metrics import METRICS
from trainers.config.metrics import Task as Task
from trainers.config.sections import (
    BatchConfig,
    CheckpointConfig,
    DistillationConfig,
    EvaluationConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StoppingConfig,
)
from trainers.config.windows import SPECIAL_TOKENS

AUTO = "auto"
Number = TypeVar("Number", int, float)
SHIPPED = Path(__file__).parents[1] / "recipes"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx", ".xls", ".zip")
SEARCH_KEY = "tune"  # the key of the ranges to search, which `tuning` reads

Tracker = Literal["tensorboard", "mlflow", "wandb"]
# Without the tags, a wrong layout would be reported twice: as no layout, and as not `auto`.
AnyLayout = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Layout, Tag("explicit")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "explicit"),
]


class Recipe(Settings):
    """Everything that decides what a run computes. The hardware it runs on is the cluster's."""

    other_names: ClassVar[Mapping[str, str]] = trainer_names.SETTINGS

    task: Task = Field("classification", description="what is learned")
    model: ModelConfig
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    masking: MaskingConfig = MaskingConfig()
    distillation: DistillationConfig | None = Field(
        None, description="a teacher to learn from beside the labels; null: the labels alone"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
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
    linear_probe: bool | Literal["auto"] = Field(
        "auto",
        description="whether the head is first fitted to the features of the frozen encoder, in "
        "seconds; auto: on few rows",
    )
    baseline: bool = Field(
        True,
        description="whether a bag of words is fitted to the same rows first, as the bar to beat",
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    stopping: StoppingConfig = StoppingConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    tracking: tuple[Tracker, ...] = Field(
        ("tensorboard",),
        description="who is told of the run beside metrics.jsonl; mlflow and wandb are extras of "
        "the installation",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of order, masks, dropout and fresh weights"
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> "Recipe":
        metric = self.evaluation.metric
        if metric is not None and metric not in METRICS[self.task]:
            raise ValueError(
                f"evaluation.metric {metric!r} does not exist for {self.task}; "
                f"choose one of {', '.join(METRICS[self.task])}"
            )
        if self.task in ("regression", "masked-lm") and self.data.labels is not None:
            raise ValueError(f"data.labels names classes, but task is {self.task}; remove one")
        if self.task == "regression" and not isinstance(self.data.label, str):
            raise ValueError(
                f"data.label = {list(self.data.label)} names {len(self.data.label)} columns, but "
                "task regression learns one number; name one column"
            )
        if self.task == "masked-lm" and self.model.name == "linear":
            raise ValueError(
                "task masked-lm guesses words, but model.name is linear, which reads numbers; "
                "set model.name: random, or the name of a BERT"
            )
        if self.task != "masked-lm" and self.masking != MaskingConfig():
            raise ValueError(
                f"masking belongs to masked-lm, but task is {self.task}; remove masking, or set "
                "task: masked-lm"
            )
        if self.task in ("regression", "masked-lm") and self.loss != LossConfig():
            raise ValueError(f"loss weighs classes, but task {self.task} has none; remove loss")
        if self.task == "masked-lm" and self.distillation is not None:
            raise ValueError(
                f"distillation.teacher = {self.distillation.teacher!r}: task masked-lm has no "
                "teacher; remove distillation, or set the teacher's task"
            )
        self._check_windows()
        if self.evaluation.label_errors and (
            self.task not in ("classification", "multi-label")
            or self.model.name in ("random", "linear")
        ):
            raise ValueError(
                "evaluation.label_errors reads the features of a named model for labels, but task "
                f"is {self.task} and model.name {self.model.name}; remove evaluation.label_errors"
            )
        if not self.data.validation and self.stopping.patience is not None:
            raise ValueError(
                "stopping.patience waits for evaluations, but data.validation is 0; "
                "hold rows out, or remove patience"
            )
        if not self.data.validation and self.checkpoints.average is not None:
            raise ValueError(
                f"checkpoints.average = {self.checkpoints.average} is compared with the best "
                "checkpoint, but data.validation is 0; hold rows out, or remove average"
            )
        return self

    def _check_windows(self) -> None:
        """Raise ValueError where `data.windows` cannot be, or leaves tokens of a text unread."""
        windows, length = self.data.windows, self.batch.max_length
        if windows is None:
            return
        if self.task == "masked-lm":
            raise ValueError(
                "data.windows reads long texts in windows, but task masked-lm packs every text "
                "whole and cuts none; set data.windows: null"
            )
        if self.model.name == "linear":
            raise ValueError(
                "data.windows reads long texts in windows, but model.name is linear, which reads "
                "numbers; set data.windows: null"
            )
        if windows.step(length) > length - SPECIAL_TOKENS:
            raise ValueError(
                f"data.windows.stride = {windows.stride} leaves tokens between windows of "
                f"batch.max_length = {length} unread; set it to {length - SPECIAL_TOKENS} or less"
            )

    @property
    def metric(self) -> str:
        """The metric that chooses the best checkpoint."""
        return self.evaluation.metric or METRICS[self.task][0]

    @property
    def global_batch_size(self) -> int:
        """Samples an optimizer step; asked for once `auto` is resolved."""
        return self._resolved("batch", "global_size", int)

    @property
    def learning_rate(self) -> float:
        """The highest of the schedule; asked for once `auto` is resolved."""
        return self._resolved("optimizer", "learning_rate", float)

    @property
    def epochs(self) -> int:
        """Passes over the training rows; asked for once `auto` is resolved."""
        return self._resolved("stopping", "epochs", int)

    def _resolved(self, group: str, name: str, kind: type[Number]) -> Number:
        value = getattr(getattr(self, group), name)
        assert value != AUTO, f"{group}.{name} is auto: call defaults.choose_settings"
        return kind(value)

    def with_absolute_paths(self) -> "Recipe":
        """Return the recipe with names of existing files and directories made absolute.

        Workers run in other directories than the one where the recipe was written.
        """
        return self.model_copy(
            update={
                "model": _absolute_fields(self.model, "name", "tokenizer"),
                "data": _absolute_fields(self.data, "source", "validation", "test"),
                "distillation": self.distillation
                and _absolute_fields(self.distillation, "teacher"),
            }
        )

    def to_yaml(self) -> str:
        """Dump the recipe with every default written out; `load_recipe` reads it back equal."""
        return dump_yaml(self.model_dump(mode="json"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe `name`, a file or the name of a shipped one, and apply `key=value` overrides.

    Its ranges to search (`tune:`) are left alone. Raises SettingsError for a missing file, broken
    YAML, or anything wrong in the settings.
    """
    settings, origin = read_settings(name, overrides)
    settings.pop(SEARCH_KEY, None)
    return parse_recipe(settings, origin)


def read_settings(name: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Read the plain settings of a recipe with its overrides, `tune:` among them, and its origin.

    Raises SettingsError for a missing file or broken YAML; what is in it is not checked.
    """
    path = _find_recipe(name)
    settings = read_yaml(path)
    for assignment in overrides:
        apply_override(settings, assignment)
    return settings, path.name if path.parent == SHIPPED else str(path)


def parse_recipe(settings: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Validate plain settings. Raises SettingsError that lists every mistake."""
    return validate_settings(Recipe, settings, origin)


def recipe_schema() -> str:
    """Return the JSON schema of a recipe, for editors."""
    json_schema = Recipe.model_json_schema()
    json_schema["properties"][SEARCH_KEY] = {
        "type": "object",
        "description": "ranges that `bertha tune` searches, by dotted key: `log 1e-6..1e-3`, "
        "`1..5` or a list",
    }
    return json.dumps(json_schema, indent=2)


def _absolute_fields(group: Settings, *names: str) -> Settings:
    absolute = {
        name: str(Path(value).resolve())
        for name in names
        if isinstance(value := getattr(group, name), str)
        and value != AUTO
        and (Path(value).exists() or _is_pattern(value))
    }
    return group.model_copy(update=absolute)


def _is_pattern(name: str) -> bool:
    return "://" not in name and any(mark in name for mark in "*?[")


def _find_recipe(name: str | Path) -> Path:
    path = Path(name)
    if any(end in TABLES for end in path.suffixes) and "=" not in str(name):
        raise SettingsError(
            f"{name} holds rows, and is no recipe; write csv.yaml data.source={name} "
            "data.text=COLUMN data.label=COLUMN"
        )
    if path.is_dir():
        inside = path / "recipe.yaml"
        hint = f"give {inside}" if inside.is_file() else "give a recipe file, or a shipped name"
        raise SettingsError(f"{str(name)!r} is a directory, no recipe; {hint}")
    shipped = SHIPPED / f"{path.stem}.yaml"
    for candidate in (path, shipped):
        if candidate.is_file():
            return candidate
    if "=" in str(name):
        raise SettingsError(
            f"{str(name)!r} is a setting, and the recipe comes first, as in csv.yaml {name}"
        )
    names = sorted(recipe.stem for recipe in SHIPPED.glob("*.yaml"))
    close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.5)
    suggestion = f"; did you mean {close[0]}? Otherwise" if close else ":"
    raise SettingsError(
        f"no recipe {str(name)!r}{suggestion} give a file, or one of {', '.join(names)}"
    )
