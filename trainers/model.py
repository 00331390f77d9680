"""The model of a recipe or of a directory, and its predictions.

Weights come from a package, a directory or the hub, as safetensors only and without remote code, or
are drawn fresh from the recipe's seed. Knows nothing of optimizers, Ray or layouts.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from trainers.architecture import config_of, from_hub
from trainers.batching import Cost, cut
from trainers.bert import TextModel
from trainers.device import DEVICES
from trainers.encoding import Samples
from trainers.recipe import Recipe


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
    (micro_batches,) = cut(
        np.arange(len(samples)),
        samples.lengths,
        1,
        token_budget,
        Cost(DEVICES[device.type].overhead_tokens),
    )
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


def _pretrained(name: str, config: BertConfig | None) -> BertForSequenceClassification:
    """Weights from a directory, a package or the hub: safetensors only, no remote code."""
    with from_hub(name) as source:
        return BertForSequenceClassification.from_pretrained(
            source, config=config, use_safetensors=True
        )
