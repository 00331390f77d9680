"""The model of a recipe or of a directory, and its predictions.

Weights come from a package, a directory or the hub, as safetensors only and without remote code, or
are drawn fresh from the recipe's seed. Knows nothing of optimizers, Ray or layouts.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForSequenceClassification

from cluster.errors import BerthaError
from trainers.batching import Cost, cut
from trainers.bert import TextModel, quiet
from trainers.encoding import Samples
from trainers.packages import resolve_model
from trainers.recipe import SIZES, Recipe, Task

PROBLEM_TYPES: dict[Task, str] = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


class ModelError(BerthaError):
    """A model that cannot be had or used; the text says the way out."""


class LinearModel(nn.Module):
    """A linear map of the numbers in the text: the smallest model the trainer fits."""

    def __init__(self, num_features: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(
        self, numbers: Tensor, mask: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Outputs [b, num_labels] of `numbers` [b, num_features] float32."""
        outputs: Tensor = self.linear(numbers)
        return outputs

    def save(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        sizes = {
            "model_type": "linear",
            "num_features": self.linear.in_features,
            "num_labels": self.linear.out_features,
        }
        (directory / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
        save_file(self.state_dict(), directory / "model.safetensors")


Model = TextModel | LinearModel


def build(recipe: Recipe, labels: tuple[str, ...], num_features: int) -> Model:
    """The model a recipe trains, fresh or pretrained, in training mode.

    labels: class names, () for regression. num_features: of a linear model. Fresh weights are a
    function of the recipe's seed. Raises ModelError when the model cannot be had.
    """
    torch.manual_seed(recipe.seed)
    if recipe.model.name == "linear":
        return LinearModel(num_features, max(1, len(labels)))
    config = config_of(recipe, labels)
    if recipe.model.name == "random":
        return TextModel(BertForSequenceClassification(config)).train()
    return TextModel(_pretrained(recipe.model.name, config)).train()


def config_of(recipe: Recipe, labels: tuple[str, ...]) -> BertConfig:
    """The configuration of the recipe's BERT. Raises ModelError when it cannot be had or used."""
    names = labels or ("value",)
    settings = {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": PROBLEM_TYPES[recipe.task],
        "hidden_dropout_prob": recipe.model.dropout,
        "attention_probs_dropout_prob": recipe.model.attention_dropout,
        "classifier_dropout": recipe.model.dropout,
    }
    if recipe.model.name == "random":
        return _fresh_config(recipe, settings)
    with _from_hub(recipe.model.name) as source:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **settings)
    if config.model_type != "bert":
        raise ModelError(
            f"model.name = {recipe.model.name!r}: a {config.model_type} model; "
            "this trains models of type bert"
        )
    longest = config.max_position_embeddings
    if recipe.batch.max_length > longest:
        raise ModelError(
            f"batch.max_length = {recipe.batch.max_length}: {recipe.model.name} has positions for "
            f"{longest} tokens; set batch.max_length={longest}"
        )
    return config


def parameters_of(config: BertConfig) -> int:
    """How many parameters a model of `config` has; none is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in BertForSequenceClassification(config).parameters())


def load(directory: Path) -> Model:
    """A saved model in evaluation mode."""
    config = json.loads((directory / "config.json").read_text())
    if config["model_type"] == "linear":
        linear = LinearModel(config["num_features"], config["num_labels"])
        linear.load_state_dict(load_file(directory / "model.safetensors"))
        return linear.eval()
    return TextModel(_pretrained(str(directory), None)).eval()


def predict(
    model: nn.Module,
    samples: Samples,
    pad: int,
    token_budget: int,
    device: torch.device | None = None,
) -> np.ndarray:
    """Logits [n, num_labels] float32 of `samples`, in their order, computed length-sorted."""
    device = device or torch.device("cpu")
    (micro_batches,) = cut(np.arange(len(samples)), samples.lengths, 1, token_budget, Cost())
    logits: np.ndarray | None = None
    with torch.inference_mode():
        for micro_batch in micro_batches:
            of_rows = model(*tensors(samples, micro_batch.rows, pad, device)).float().cpu().numpy()
            if logits is None:
                logits = np.empty((len(samples), of_rows.shape[1]), dtype=np.float32)
            logits[micro_batch.rows] = of_rows
    assert logits is not None
    return logits


def tensors(
    samples: Samples, rows: np.ndarray, pad: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The rows as (ids [b, s], mask [b, s] or None when nothing is padded) on `device`."""
    ids, mask = samples.collate(rows, pad)
    inputs = torch.from_numpy(ids).to(device)
    if not inputs.is_floating_point():
        inputs = inputs.long()
    return inputs, None if mask.all() else torch.from_numpy(mask).to(device)


def _fresh_config(recipe: Recipe, settings: dict[str, Any]) -> BertConfig:
    tokenizer = AutoTokenizer.from_pretrained(
        resolve_model(recipe.model.tokenizer or ""), trust_remote_code=False
    )
    sizes = {size: getattr(recipe.model, size) for size in SIZES}
    return BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=max(512, recipe.batch.max_length),
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
        **settings,
    )


def _pretrained(name: str, config: BertConfig | None) -> BertForSequenceClassification:
    """Weights from a directory, a package or the hub: safetensors only, no remote code."""
    with _from_hub(name) as source:
        return BertForSequenceClassification.from_pretrained(
            source, config=config, use_safetensors=True
        )


@contextmanager
def _from_hub(name: str) -> Iterator[str]:
    """The place to load `name` from, with Transformers quiet and its failures in our words."""
    try:
        with quiet():
            yield resolve_model(name)
    except OSError as error:
        raise ModelError(
            f"model.name = {name!r}: not a directory with a model, and not to be had from the hub "
            f"({str(error).splitlines()[0]}); give a directory, or package:all-minilm-l6-v2"
        ) from None
