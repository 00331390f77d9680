"""The BERT family: where each model type of Transformers keeps its modules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.packed import PackedTexts


@dataclass(frozen=True)
class ModelFamily:
    """One model type of Transformers. Names below `layers` are relative to a layer.

    encoder: attribute that holds the encoder; layers: its ModuleList. attention: the module whose
    first input is split over heads; it holds `dropout`. colwise, rowwise: linear layers that tensor
    parallelism splits by output and by input. norms: layer norms that close a residual.
    supports_cls_only: whether the last layer may compute [CLS] alone. classify: returns logits
    [b, num_labels] of hidden states [b, s, h]. predict_tokens: logits [n, vocabulary] of [n, h].
    output: the linear layer that makes a classifier's logits.
    """

    encoder: str
    layers: str
    attention: str
    colwise: tuple[str, ...]
    rowwise: tuple[str, ...]
    norms: tuple[str, ...]
    supports_cls_only: bool
    classify: Callable[[Any, Tensor], Tensor]
    predict_tokens: Callable[[Any, Tensor], Tensor]
    output: str

    def get_encoder(self, net: nn.Module) -> Any:
        """Return the encoder of `net`."""
        return getattr(net, self.encoder)

    def get_layers(self, net: nn.Module) -> nn.ModuleList:
        """Return the encoder layers of `net`."""
        layers = self.get_encoder(net).get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def keep_layers(self, net: nn.Module, layers: Sequence[int]) -> None:
        """Drop all layers of `net` but those with the given indices."""
        every, encoder = self.get_layers(net), self.get_encoder(net)
        encoder.set_submodule(self.layers, nn.ModuleList(every[index] for index in layers))
        encoder.config.num_hidden_layers = len(layers)

    def embed_tokens(self, net: nn.Module, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return hidden states [b, s, h] of token ids [b, s], before the first layer.

        positions: [b, s] int64, as from `position_ids`; None: each row is one text.
        """
        encoder = self.get_encoder(net)
        hidden: Tensor = encoder.embeddings(input_ids=ids, position_ids=positions)
        project = getattr(encoder, "embeddings_project", None)
        return hidden if project is None else project(hidden)

    def position_rows(self, net: nn.Module, ids: Tensor, packed: PackedTexts) -> Tensor:
        """Return the position embeddings' rows [1, t] of packed `ids` [1, t], by `position_ids`."""
        config: Any = net.config
        if config.model_type != "roberta":
            return packed.positions[None]
        real: Tensor = (ids[0] != config.pad_token_id).long()
        counted = real.cumsum(0)
        starts = torch.arange(len(real), device=real.device) - packed.positions
        before = counted[starts] - real[starts]
        rows: Tensor = (counted - before) * real + config.pad_token_id
        return rows[None]


Head = Callable[[Any, Tensor], Tensor]


def _bert_family(encoder: str, classify: Head, predict: Head, output: str) -> ModelFamily:
    return ModelFamily(
        encoder=encoder,
        layers="encoder.layer",
        attention="attention.self",
        colwise=(
            *(f"attention.self.{name}" for name in ("query", "key", "value")),
            "intermediate.dense",
        ),
        rowwise=("attention.output.dense", "output.dense"),
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        supports_cls_only=True,
        classify=classify,
        predict_tokens=predict,
        output=output,
    )


FAMILIES = {
    "bert": _bert_family(
        "bert",
        lambda net, h: net.classifier(net.dropout(net.bert.pooler(h))),
        lambda net, h: net.cls(h),
        "classifier",
    ),
    "roberta": _bert_family(
        "roberta",
        lambda net, h: net.classifier(h),
        lambda net, h: net.lm_head(h),
        "classifier.out_proj",
    ),
    "electra": _bert_family(
        "electra",
        lambda net, h: net.classifier(h),
        lambda net, h: net.generator_lm_head(net.generator_predictions(h)),
        "classifier.out_proj",
    ),
    "distilbert": ModelFamily(
        encoder="distilbert",
        layers="transformer.layer",
        attention="attention",
        colwise=("attention.q_lin", "attention.k_lin", "attention.v_lin", "ffn.lin1"),
        rowwise=("attention.out_lin", "ffn.lin2"),
        norms=("sa_layer_norm", "output_layer_norm"),
        supports_cls_only=False,
        classify=lambda net, h: net.classifier(net.dropout(F.relu(net.pre_classifier(h[:, 0])))),
        predict_tokens=lambda net, h: net.vocab_projector(
            net.vocab_layer_norm(net.activation(net.vocab_transform(h)))
        ),
        output="classifier",
    ),
}


def position_ids(config: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """Return the position embeddings' rows [n] int64 of the tokens `ids` [n] of one text.

    config: of Transformers. RoBERTa counts from its pad id + 1, and does not count pads.
    """
    if config["model_type"] != "roberta":
        return np.arange(len(ids))
    pad = int(config["pad_token_id"])
    real = ids != pad
    return np.where(real, np.cumsum(real) + pad, pad)
