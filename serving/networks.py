"""The torch network of a bundle, whatever its task. Knows no texts.

network = networks.load(directory, card)
outputs = network(ids, mask, None, positions)
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, PreTrainedModel

from trainers import bundle
from trainers.architecture import ModelError, from_hub
from trainers.bert import ClsOnlyLayer, attend
from trainers.card import Card
from trainers.families import FAMILIES, Family


class EmbeddingModel(nn.Module):
    """An encoder whose hidden states become one vector of length 1 a text.

    pooling: "mean" over the tokens, or "cls", where the last layer computes [CLS] alone.
    """

    def __init__(self, encoder: PreTrainedModel, pooling: str) -> None:
        super().__init__()
        AttentionInterface.register("bertha", attend)
        encoder.config._attn_implementation = "bertha"
        self.family: Family = FAMILIES[encoder.config.model_type]
        self.pooling = pooling
        self.net = nn.Module()
        self.net.add_module(self.family.encoder, encoder)
        layers = self.family.layers_of(self.net)
        if pooling == "cls" and self.family.bert_shaped:
            layers[-1] = ClsOnlyLayer(layers[-1])

    def forward(self, ids: Tensor, mask: Tensor | None = None, *_: Tensor | None) -> Tensor:
        """Vectors [b, width] of token ids [b, s]. mask: [b, s] bool; None: nothing is padded."""
        spread = None if mask is None else mask[:, None, None, :]
        hidden = self.family.embed(self.net, ids)
        for layer in self.family.layers_of(self.net):
            hidden = layer(hidden, spread)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif mask is None:
            pooled = hidden.mean(dim=1)
        else:
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return F.normalize(pooled, dim=-1)


class Masked(nn.Module):
    """A network as it is exported: every input is a tensor and none is left out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.train(network.training)  # an exporter gives every part the mode of the whole back

    def forward(self, ids: Tensor, mask: Tensor, *positions: Tensor) -> Tensor:
        """Outputs of ids [b, s] and mask [b, s], and of positions [n] where there are any."""
        outputs: Tensor = self.network(ids, mask, None, *positions)
        return outputs


def load(directory: Path, card: Card) -> nn.Module:
    """The network of a bundle in evaluation mode, fp32."""
    if card.task != "embedding":
        return bundle.load_model(directory, card)
    return EmbeddingModel(encoder_of(str(directory)), card.pooling or "mean").eval()


def encoder_of(source: str) -> Any:
    """The encoder in a directory, a hub name or `package:NAME`, without a head.

    Raises ModelError where there is none, or of a kind that is not known here.
    """
    with from_hub(source) as place:
        encoder = AutoModel.from_pretrained(
            place, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    kind = encoder.config.model_type
    if kind not in FAMILIES:
        raise ModelError(
            f"{source}: a {kind} model; embeddings are served of models of type "
            f"{', '.join(FAMILIES)}"
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # nothing reads it
    return encoder
