"""The BERT family: where each member keeps its parts, one row a model type.

Layer names are relative to a layer. `columns` are the linear layers that tensor parallelism splits
by output, `rows` those it splits by input; a family without them keeps its layers whole. Knows no
mesh and no recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One model type of Transformers.

    encoder: attribute that holds the encoder; layers: its ModuleList. attention: the module whose
    first input is split over heads; it holds `dropout`. norms: the layer norms that close a
    residual. bert_shaped: whether the last layer may compute [CLS] alone. classify: logits
    [b, num_labels] of hidden states [b, s, h]; predict: logits [n, vocabulary] of [n, h].
    """

    encoder: str
    layers: str
    attention: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    norms: tuple[str, ...]
    bert_shaped: bool
    classify: Callable[[Any, Tensor], Tensor]
    predict: Callable[[Any, Tensor], Tensor]

    def encoder_of(self, net: nn.Module) -> Any:
        """The encoder inside `net`."""
        return getattr(net, self.encoder)

    def layers_of(self, net: nn.Module) -> nn.ModuleList:
        """The layers inside `net`."""
        layers = self.encoder_of(net).get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def keep(self, net: nn.Module, layers: Sequence[int]) -> None:
        """Leave only the layers of those numbers inside `net`, a model of Transformers."""
        held, encoder = self.layers_of(net), self.encoder_of(net)
        encoder.set_submodule(self.layers, nn.ModuleList(held[number] for number in layers))
        encoder.config.num_hidden_layers = len(layers)

    def embed(self, net: nn.Module, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states [b, s, h] of token ids [b, s], before the first layer.

        positions: [b, s] int64, as `positions_of` numbers them; None: each row is one text.
        """
        encoder = self.encoder_of(net)
        hidden: Tensor = encoder.embeddings(input_ids=ids, position_ids=positions)
        project = getattr(encoder, "embeddings_project", None)
        return hidden if project is None else project(hidden)


def _pooled(net: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = net.classifier(net.dropout(net.bert.pooler(hidden)))
    return logits


def _first_token(net: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = net.classifier(hidden)
    return logits


def _distilled(net: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = net.classifier(net.dropout(F.relu(net.pre_classifier(hidden[:, 0]))))
    return logits


def _distilled_tokens(net: Any, hidden: Tensor) -> Tensor:
    transformed = net.vocab_layer_norm(net.activation(net.vocab_transform(hidden)))
    logits: Tensor = net.vocab_projector(transformed)
    return logits


def _generated_tokens(net: Any, hidden: Tensor) -> Tensor:
    logits: Tensor = net.generator_lm_head(net.generator_predictions(hidden))
    return logits


def _bert_shaped(
    encoder: str,
    classify: Callable[[Any, Tensor], Tensor],
    predict: Callable[[Any, Tensor], Tensor],
) -> Family:
    return Family(
        encoder=encoder,
        layers="encoder.layer",
        attention="attention.self",
        columns=(
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "intermediate.dense",
        ),
        rows=("attention.output.dense", "output.dense"),
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
        bert_shaped=True,
        classify=classify,
        predict=predict,
    )


FAMILIES = {
    "bert": _bert_shaped("bert", _pooled, lambda net, hidden: net.cls(hidden)),
    "roberta": _bert_shaped("roberta", _first_token, lambda net, hidden: net.lm_head(hidden)),
    "electra": _bert_shaped("electra", _first_token, _generated_tokens),
    "distilbert": Family(
        encoder="distilbert",
        layers="transformer.layer",
        attention="attention",
        columns=("attention.q_lin", "attention.k_lin", "attention.v_lin", "ffn.lin1"),
        rows=("attention.out_lin", "ffn.lin2"),
        norms=("sa_layer_norm", "output_layer_norm"),
        bert_shaped=False,
        classify=_distilled,
        predict=_distilled_tokens,
    ),
}


def positions_of(config: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """Which row of the position table each of a text's tokens `ids` [n] reads: [n] int64.

    config: of Transformers. RoBERTa begins behind its pad, and does not count pads.
    """
    if config["model_type"] != "roberta":
        return np.arange(len(ids))
    pad = int(config["pad_token_id"])
    real = ids != pad
    return np.where(real, np.cumsum(real) + pad, pad)
