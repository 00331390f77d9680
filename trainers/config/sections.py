"""The sections of a recipe but for its data, each frozen and checked by itself.

Checks that involve two sections are in `recipe.py`.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from cluster.settings import Settings
from trainers.config.field_types import (
    AutoCount,
    AutoPositive,
    CellText,
    Count,
    Fraction,
    NonNegative,
    Positive,
)
from trainers.config.metrics import Metric

Frozen = Annotated[
    Annotated[Literal["embeddings", "encoder"], Tag("part")] | Annotated[Count, Tag("layers")],
    Discriminator(lambda value: "part" if isinstance(value, str) else "layers"),
]

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class ModelConfig(Settings):
    """The model to train."""

    name: str = Field(
        description="a hub name, a directory, `package:all-minilm-l6-v2`, `random` (a BERT of the "
        "sizes given here) or `linear` (the text is read as numbers)"
    )
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | None = Field(
        None,
        description="which layers of a named model are kept, by number from 0, the usual start of "
        "a student; default: all",
    )
    freeze: Frozen | None = Field(
        None,
        description="what of a named model is not trained, from below: `embeddings`, a number of "
        "layers with the embeddings, or `encoder`, all of them; pooler and head always train",
    )
    tokenizer: str | None = Field(
        None, description="hub name, directory or `package:`; default: the model's own"
    )
    vocabulary_size: Annotated[int, Field(ge=64)] | None = Field(
        None,
        description="most pieces of a tokenizer trained on the training texts, for a `random` "
        "model; instead of `tokenizer`",
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
    def _layers_are_of_a_named_model(self) -> "ModelConfig":
        if self.layers is None:
            return self
        given = list(self.layers)
        if self.name in ("random", "linear"):
            raise ValueError(
                f"layers = {given} keeps layers of a named model, but name is {self.name}; remove "
                "layers, or name a model"
            )
        if given[0] < 0 or given != sorted(set(given)):
            raise ValueError(
                f"layers = {given}: layers are numbered from 0 and kept once each, in their order; "
                "write them so, as in [0, 2, 4]"
            )
        return self

    @model_validator(mode="after")
    def _frozen_is_of_a_named_model(self) -> "ModelConfig":
        if self.freeze is not None and self.name in ("random", "linear"):
            raise ValueError(
                f"freeze = {self.freeze} keeps what a named model has learned, but name is "
                f"{self.name}; remove freeze, or name a model"
            )
        return self

    @model_validator(mode="after")
    def _sizes_belong_to_random(self) -> "ModelConfig":
        own = (*SIZES, "vocabulary_size")
        given = [name for name in own if getattr(self, name) is not None]
        if self.name != "random":
            if given:
                raise ValueError(
                    f"{', '.join(given)} given, but the sizes of {self.name!r} are fixed; "
                    "remove them, or set name: random"
                )
            return self
        missing = [size for size in SIZES if getattr(self, size) is None]
        if self.tokenizer is None and self.vocabulary_size is None:
            missing.append("tokenizer (or vocabulary_size, to train one)")
        if missing:
            raise ValueError(f"a `random` model also needs {', '.join(missing)}")
        if self.tokenizer is not None and self.vocabulary_size is not None:
            raise ValueError(
                f"vocabulary_size = {self.vocabulary_size} trains a tokenizer, but tokenizer = "
                f"{self.tokenizer!r} names one; remove one of the two"
            )
        hidden, heads = self.hidden_size or 1, self.num_attention_heads or 1
        if hidden % heads:
            raise ValueError(
                f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            )
        return self


class BatchConfig(Settings):
    """The batch of an optimizer step (global_size) and of one forward pass (token_budget)."""

    global_size: AutoCount = Field(
        "auto",
        description="samples an optimizer step, over all workers; auto: 16, from 2,000 rows 32",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        128,
        description="tokens a text; longer texts are cut, or read in `data.windows`; for masked-lm "
        "the tokens of a sequence, which is filled with texts",
    )
    token_budget: Count | None = Field(
        None,
        description="most tokens a device computes at once; default: what suits the device, of a "
        "GPU what its memory holds. It changes speed and memory, never the result",
    )

    @model_validator(mode="after")
    def _budget_holds_a_text(self) -> "BatchConfig":
        if self.token_budget is not None and self.token_budget < self.max_length:
            raise ValueError(
                f"token_budget {self.token_budget} cannot hold one text of max_length "
                f"{self.max_length}; raise token_budget or lower max_length"
            )
        return self


class MaskingConfig(Settings):
    """The tokens that a masked language model has to predict."""

    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.15, description="share of the tokens of each sequence that are guessed"
    )
    whole_words: bool = Field(
        False, description="guess all pieces of a word or none, instead of single pieces"
    )


class OptimizerConfig(Settings):
    """The update rule and its hyperparameters."""

    name: Literal["sgd", "adam", "adamw", "lamb"] = Field(
        "adamw", description="the update rule; lamb for global batches of thousands"
    )
    learning_rate: AutoPositive = Field(
        "auto", description="the highest of the schedule; auto: by the width of the model"
    )
    weight_decay: NonNegative = Field(
        0.01, description="decoupled for adamw and lamb, L2 otherwise; never on biases and norms"
    )
    momentum: Fraction = Field(0.0, description="of sgd")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="of adam, adamw and lamb")
    eps: Positive = Field(1e-8, description="of adam, adamw and lamb")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="what each layer below the head multiplies the learning rate by, so that the "
        "embeddings learn slowest",
    )
    max_grad_norm: Positive | None = Field(1.0, description="clip the global norm; null: never")

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> "OptimizerConfig":
        if self.momentum and self.name != "sgd":
            raise ValueError(
                f"momentum belongs to sgd, not to {self.name}; use betas, or name: sgd"
            )
        return self


class DistillationConfig(Settings):
    """A teacher, whose logits are learned beside the labels."""

    teacher: str = Field(description="directory of the teacher's bundle")
    temperature: Positive = Field(
        2.0,
        description="what the logits of both are divided by, so that the teacher's doubts are "
        "heard; regression has no use for it",
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="the teacher's share of the loss; the labels have the rest"
    )


class LossConfig(Settings):
    """What counts more in the loss of labels; the loss of an evaluation is without it."""

    class_weights: Literal["balanced"] | dict[CellText, NonNegative] | None = Field(
        None,
        description="what a row of a class counts, by name, 1 where none is given; balanced: rows "
        "over classes times rows of the class; of multi-label what having a label counts, "
        "balanced: rows without it over rows with it",
    )
    focal_gamma: NonNegative = Field(
        0.0, description="above 0, rows that are right already count less: focal loss"
    )
    label_smoothing: Fraction = Field(
        0.0, description="share of the truth that is spread evenly over the classes"
    )


class ScheduleConfig(Settings):
    """The learning rate over the run."""

    name: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="the shape after warmup; linear and cosine end at 0"
    )
    warmup: Fraction = Field(0.1, description="share of all steps that rise linearly from 0")
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="optimizer steps that do, instead of a share"
    )


class EvaluationConfig(Settings):
    """When and by which metric the validation rows are evaluated, and what else is found out."""

    every_steps: Count | None = Field(None, description="default: at the end of each epoch")
    metric: Metric | None = Field(
        None,
        description="chooses the best checkpoint; default: f1, for regression and masked-lm loss. "
        "f1, precision and recall are means over the labels (macro)",
    )
    calibrate: bool = Field(
        True,
        description="whether one temperature, fitted to the validation rows, divides the logits "
        "where that makes the probabilities better beyond chance; answers stay the same",
    )
    label_errors: bool = Field(
        False,
        description="whether training rows whose label is likely wrong are listed in "
        "label-issues.csv, by a classifier on features of the encoder before training",
    )


class StoppingConfig(Settings):
    """When the run ends."""

    epochs: AutoCount = Field(
        "auto",
        description="passes over the training rows; auto: as many as give enough optimizer steps, "
        "3 to 20",
    )
    max_steps: Count | None = Field(None, description="end earlier, after so many optimizer steps")
    patience: Count | None = Field(
        None, description="end after so many evaluations without a better metric"
    )


class CheckpointConfig(Settings):
    """How often a run is saved, and how many checkpoints it keeps."""

    every_steps: Count | None = Field(None, description="default: at each evaluation")
    keep: Count = Field(2, description="newest checkpoints kept, beside the best")
    average: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="the mean of the weights of so many last checkpoints is evaluated at the end, "
        "and is what the bundle holds where it is better than the best of them",
    )
