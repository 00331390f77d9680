"""Build the model of a recipe or of a directory, initialize its weights, and predict with it.

Pretrained weights come from a package, a directory or the hub, as safetensors only and without
remote code. Fresh ones are BERT's: normal with the configuration's `initializer_range` for linear
and embedding weights, zero for biases and padding rows, one for the weights of norms.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
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
from trainers.config.windows import Pool
from trainers.data.microbatch import cut_batch
from trainers.data.ragged import RaggedArray
from trainers.data.tokenizer import Encoder
from trainers.distributed.dtensor import local_shard, to_local
from trainers.models.bert import TextModel
from trainers.models.config import build_config, build_full_config, pretrained_source
from trainers.models.families import FAMILIES
from trainers.models.heads import plan_head
from trainers.models.packed import PackedTexts
from trainers.models.pretrained import check_loaded
from trainers.models.window_pool import WindowPool
from trainers.untrusted.model_files import CONFIG_FILE, check_model_files


class LinearModel(nn.Module):
    """A linear map of the numbers in a text: the smallest model the trainer fits."""

    def __init__(self, num_features: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, num_labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, numbers: Tensor, _: PackedTexts | None = None) -> Tensor:
        """Return outputs [b, num_labels] of `numbers` [b, num_features] float32."""
        outputs: Tensor = self.linear(numbers)
        return outputs

    def save_pretrained(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        sizes = {
            "model_type": "linear",
            "num_features": self.linear.in_features,
            "num_labels": self.linear.out_features,
        }
        (directory / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
        save_file(self.state_dict(), directory / "model.safetensors")


Model = TextModel | LinearModel


def build_model(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, encoder: Encoder | None = None
) -> Model:
    """Build the whole model a recipe trains, fresh or pretrained, in training mode on the CPU.

    labels: class names, () for regression. num_features: of a linear model. encoder: gives a fresh
    model its vocabulary. Raises ModelError when the model cannot be loaded.
    """
    model = build_on_meta(recipe, labels, num_features, encoder)
    materialize(model, recipe.seed, torch.device("cpu"))
    return model


def build_on_meta(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, encoder: Encoder | None = None
) -> Model:
    """Build the recipe's model for `parallelize`: on the meta device unless it is pretrained."""
    if recipe.model.name in ("random", "linear"):
        return meta_model(recipe, labels, num_features, encoder)
    torch.manual_seed(recipe.seed)
    config, plan = build_full_config(recipe, labels), plan_head(recipe, labels)
    auto_class = _auto_class(recipe.task == "masked-lm")
    net = _load_pretrained(recipe.model.name, auto_class, config, plan.is_drawn)
    if plan.rows is not None:
        _reorder_classes(net, plan.rows)
    if recipe.model.layers is not None:
        FAMILIES[config.model_type].keep_layers(net, recipe.model.layers)
    model = TextModel(net).train()
    if plan.is_drawn:
        _init_parameters(model, recipe.seed, f"net.{model.family.encoder}.")
    model.freeze(recipe.model.freeze)
    return model


def meta_model(
    recipe: Recipe, labels: tuple[str, ...], num_features: int, encoder: Encoder | None = None
) -> Model:
    """Build the recipe's model for its names, shapes and configuration; a BERT is on meta."""
    if recipe.model.name == "linear":
        return LinearModel(num_features, max(1, len(labels)))
    with torch.device("meta"):
        config = build_config(recipe, labels, encoder)
        net = _auto_class(recipe.task == "masked-lm").from_config(config)
    model = TextModel(net).train()
    model.freeze(recipe.model.freeze)
    return model


def materialize(model: Model, seed: int, device: torch.device) -> None:
    """Move a model, or a stage of one, to `device`; initialize it there if it is on meta."""
    if next(model.parameters()).is_meta:
        assert isinstance(model, TextModel)
        model.to_empty(device=device)
        model.tie_weights()
        init_weights(model, seed)
    else:
        model.to(device)


def load_model(directory: Path) -> Model:
    """Load a saved model, such as a bundle's, in evaluation mode.

    Raises ModelError, and UntrustedFileError where it would cost more than its files hold.
    """
    check_model_files(directory)
    config = json.loads((directory / CONFIG_FILE).read_text())
    if config.get("model_type") == "linear":
        linear = LinearModel(config["num_features"], config["num_labels"])
        linear.load_state_dict(load_file(directory / "model.safetensors"))
        return linear.eval()
    masked_lm = any(name.endswith("ForMaskedLM") for name in config.get("architectures") or ())
    return TextModel(_load_pretrained(str(directory), _auto_class(masked_lm), None)).eval()


def predict_logits(
    model: nn.Module,
    samples: RaggedArray,
    token_budget: int,
    device: torch.device | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
    pool: Pool = "mean",
) -> np.ndarray:
    """Return logits [n, num_labels] float32 of `samples`, in their order.

    pool: how those of the windows of a text become one row, where `samples` has windows.
    on_progress: called with the number done after each micro-batch.
    """
    device = device or torch.device("cpu")
    rows, sequences = np.arange(len(samples)), samples.sequences

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    logits: np.ndarray | None = None
    done = 0
    with torch.inference_mode():
        for micro_batch in cut_batch(rows, samples.lengths, 1, token_budget)[0]:
            of_rows, counts = samples.sequences_of(micro_batch.rows)
            inputs = move(sequences.take(of_rows))
            lengths = sequences.lengths[of_rows]
            if inputs.is_floating_point():
                outputs = model(inputs.view(len(lengths), -1), None)
            else:
                packed = PackedTexts.from_lengths(lengths, move)
                outputs = model(inputs[None].long(), packed)
            if counts is not None:
                outputs = WindowPool.from_counts(counts, pool, move)(outputs)
            outputs = outputs.float().cpu().numpy()
            if logits is None:
                logits = np.empty((len(samples), outputs.shape[1]), dtype=np.float32)
            logits[micro_batch.rows] = outputs
            done += len(micro_batch.rows)
            on_progress(done)
    assert logits is not None
    return logits


def _auto_class(masked_lm: bool) -> Any:
    return AutoModelForMaskedLM if masked_lm else AutoModelForSequenceClassification


def _load_pretrained(
    name: str, auto_class: Any, config: PreTrainedConfig | None, is_head_drawn: bool = False
) -> PreTrainedModel:
    """Load a model. is_head_drawn: its head may be of other shapes, and is then left out."""
    with pretrained_source(name) as source:
        net, found = auto_class.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=is_head_drawn,
            output_loading_info=True,
        )
    mismatched = {key for key, *_ in found["mismatched_keys"]}
    family = FAMILIES.get(net.config.model_type)
    if family is not None:
        check_loaded(name, set(found["missing_keys"]), mismatched, family, is_head_drawn)
    loaded: PreTrainedModel = net
    return loaded


@torch.no_grad()
def _reorder_classes(net: PreTrainedModel, rows: Sequence[int]) -> None:
    """Give the output layer of a classifier its classes in another order: new row i is rows[i]."""
    layer = net.get_submodule(FAMILIES[net.config.model_type].output)
    for parameter in layer.parameters():
        parameter.copy_(parameter[list(rows)].clone())


def init_weights(model: TextModel, seed: int) -> None:
    """Initialize every parameter and buffer of `model`: whole or a stage, sharded or not."""
    _init_parameters(model, seed)
    _init_buffers(model)


@torch.no_grad()
def _init_parameters(model: TextModel, seed: int, kept: str | None = None) -> None:
    """Initialize the parameters of `model`, but for those whose name begins with `kept`."""
    # Each parameter is drawn whole from its own stream, a function of (seed, name), and cut after:
    # so its numbers are the same on any layout, and no rank ever holds the whole model.
    deviation = float(model.config.initializer_range)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if kept is not None and full.startswith(kept):
                continue
            inner = full.removeprefix("net.")
            canonical = f"net.{model.tied_weights.get(inner, inner)}"  # tied ones share a draw
            padding = getattr(module, "padding_idx", None)
            if canonical != full:  # tied to the word embeddings, whose padding row is zero
                padding = model.config.pad_token_id
            values = _draw_weight(module, name, canonical, parameter.shape, seed, deviation)
            if padding is not None and values.dim() == 2:
                values[padding] = 0.0
            to_local(parameter).copy_(local_shard(values, parameter))


def _draw_weight(
    module: nn.Module, name: str, full: str, shape: torch.Size, seed: int, deviation: float
) -> Tensor:
    if name != "weight" or len(shape) < 2:
        return torch.full(shape, float(isinstance(module, nn.LayerNorm) and name == "weight"))
    digest = hashlib.sha256(f"{seed}/{full}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)


@torch.no_grad()
def _init_buffers(model: TextModel) -> None:
    """Fill position and token-type ids, which were only shapes on the meta device."""
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        else:
            buffer.zero_()
