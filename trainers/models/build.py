"""The model of a recipe or of a directory, and its predictions.

Weights come from a package, a directory or the hub, as safetensors only and without remote code, or
are drawn fresh from the recipe's seed. Knows nothing of optimizers, Ray or layouts.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from trainers.config.recipe import Recipe
from trainers.data.microbatch import Cost, cut
from trainers.data.tokenizer import Encoder, Samples
from trainers.distributed.device import DEVICES
from trainers.models import init
from trainers.models.bert import TextModel
from trainers.models.config import config_of, from_hub, whole_config_of
from trainers.models.families import FAMILIES


class LinearModel(nn.Module):
    """A linear map of the numbers in the text: the smallest model the trainer fits."""

    def __init__(self, num_features: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, numbers: Tensor, *_: Tensor | None) -> Tensor:
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
KINDS: dict[bool, Any] = {False: AutoModelForSequenceClassification, True: AutoModelForMaskedLM}


def build(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, encoder: Encoder | None = None
) -> Model:
    """The whole model a recipe trains, fresh or pretrained, in training mode.

    labels: class names, () for regression. num_features: of a linear model. encoder: of a fresh
    model, for its vocabulary. Raises ModelError when the model cannot be had.
    """
    model = outline(recipe, labels, num_features, encoder)
    materialize(model, recipe.seed, torch.device("cpu"))
    return model


def outline(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, encoder: Encoder | None = None
) -> Model:
    """The model of a recipe before it is laid out: weights where they are pretrained, else meta."""
    if recipe.model.name in ("random", "linear"):
        return shapes_of(recipe, labels, num_features, encoder)
    torch.manual_seed(recipe.seed)
    config, kind = whole_config_of(recipe, labels), KINDS[recipe.task == "masked-lm"]
    net = _pretrained(recipe.model.name, kind, config)
    if recipe.model.layers is not None:
        FAMILIES[config.model_type].keep(net, recipe.model.layers)
    return TextModel(net).train()


def shapes_of(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, encoder: Encoder | None = None
) -> Model:
    """The model of a recipe for its names, sizes and configuration; a BERT is on meta."""
    if recipe.model.name == "linear":
        return LinearModel(num_features, max(1, len(labels)))
    with torch.device("meta"):
        net = KINDS[recipe.task == "masked-lm"].from_config(config_of(recipe, labels, encoder))
    return TextModel(net).train()


def materialize(model: Model, seed: int, device: torch.device) -> None:
    """Put a model, or a part of one, on `device`; what is on meta gets its fresh weights there."""
    if next(model.parameters()).is_meta:
        assert isinstance(model, TextModel)
        model.to_empty(device=device)
        model.tie()
        init.fill(model, seed)
    else:
        model.to(device)


def load(directory: Path) -> Model:
    """A saved model in evaluation mode."""
    config = json.loads((directory / "config.json").read_text())
    if config["model_type"] == "linear":
        linear = LinearModel(config["num_features"], config["num_labels"])
        linear.load_state_dict(load_file(directory / "model.safetensors"))
        return linear.eval()
    masked_lm = any(name.endswith("ForMaskedLM") for name in config.get("architectures") or ())
    return TextModel(_pretrained(str(directory), KINDS[masked_lm], None)).eval()


def predict(
    model: nn.Module,
    samples: Samples,
    pad: int,
    token_budget: int,
    device: torch.device | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Logits [n, num_labels] float32 of `samples`, in their order, computed length-sorted.

    tell: called with how many are done, again and again.
    """
    device = device or torch.device("cpu")
    (micro_batches,) = cut(
        np.arange(len(samples)),
        samples.lengths,
        1,
        token_budget,
        Cost(DEVICES[device.type].overhead_tokens),
    )
    logits: np.ndarray | None = None
    done = 0
    with torch.inference_mode():
        for micro_batch in micro_batches:
            of_rows = model(*tensors(samples, micro_batch.rows, pad, device)).float().cpu().numpy()
            if logits is None:
                logits = np.empty((len(samples), of_rows.shape[1]), dtype=np.float32)
            logits[micro_batch.rows] = of_rows
            done += len(micro_batch.rows)
            tell(done)
    assert logits is not None
    return logits


def padded(
    samples: Samples, rows: np.ndarray, pad: int, multiple: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The rows as (values [b, s], mask [b, s] bool), where s is a multiple of `multiple`."""
    values, mask = samples.collate(rows, pad)
    lacking = -values.shape[1] % multiple
    if lacking:
        values = np.pad(values, ((0, 0), (0, lacking)), constant_values=pad)
        mask = np.pad(mask, ((0, 0), (0, lacking)))
    return values, mask


def tensors(
    samples: Samples, rows: np.ndarray, pad: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The rows as (ids [b, s], mask [b, s] or None when nothing is padded) on `device`."""
    ids, mask = padded(samples, rows, pad)
    inputs = torch.from_numpy(ids).to(device)
    if not inputs.is_floating_point():
        inputs = inputs.long()
    return inputs, None if mask.all() else torch.from_numpy(mask).to(device)


def _pretrained(name: str, kind: Any, config: PreTrainedConfig | None) -> PreTrainedModel:
    """Weights from a directory, a package or the hub: safetensors only, no remote code."""
    with from_hub(name) as source:
        net: PreTrainedModel = kind.from_pretrained(
            source, config=config, use_safetensors=True, trust_remote_code=False
        )
    return net
