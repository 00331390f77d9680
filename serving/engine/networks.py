"""The torch network of a bundle, whatever its task, over texts that lie end to end.

Embeddings, norms and linear layers see one row of tokens, and attention keeps each text to itself.
Knows no words.

    network = networks.load(directory, card)
    outputs = network(*map(torch.from_numpy, packed.arrays), spans=packed.spans)
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, PreTrainedModel

from trainers.models import bundle
from trainers.models.attention import Fold, Mask, Spans, attend
from trainers.models.bert import ClsOnlyLayer
from trainers.models.build import LinearModel
from trainers.models.card import Card
from trainers.models.config import ModelError, from_hub
from trainers.models.families import FAMILIES, Family


class PackedNetwork(nn.Module):
    """A BERT over texts that lie end to end; what it gives of the tokens that are read.

    gives: "labels" or "words", logits of either; "cls" or "mean", vectors of length 1, of the token
    that is read or over its whole text.
    """

    def __init__(self, family: Family, net: nn.Module, gives: str) -> None:
        super().__init__()
        self.family, self.net, self.gives = family, net, gives

    def forward(
        self,
        ids: Tensor,
        texts: Tensor,
        positions: Tensor,
        reads: Tensor,
        grid: Tensor | None = None,
        owners: Tensor | None = None,
        places: Tensor | None = None,
        spans: tuple[int, ...] = (),
    ) -> Tensor:
        """Outputs [n, width] of a `Packed`, its arrays as tensors.

        spans: its own, where attention may go text by text; else, as in a graph, grid, owners and
        places are how the texts lie in rows.
        """
        mask: Mask = Spans(spans)
        if grid is not None and owners is not None and places is not None:
            mask = Fold(texts, grid, owners, places)
        hidden, only_read = self.family.embed(self.net, ids[None], positions[None]), False
        for layer in self.family.layers_of(self.net):
            only_read = isinstance(layer, ClsOnlyLayer)
            hidden = layer(hidden, mask, reads) if only_read else layer(hidden, mask)
        read = hidden[0] if only_read else hidden[0, reads]
        if self.gives == "words":
            return self.family.predict(self.net, read)
        if self.gives == "labels":
            return self.family.classify(self.net, read[:, None])
        if self.gives == "mean":
            of_text = (texts[reads][:, None] == texts).to(hidden.dtype)
            read = of_text @ hidden[0] / of_text.sum(dim=1, keepdim=True)
        return F.normalize(read, dim=-1)


class PackedLinear(nn.Module):
    """A linear model over texts of numbers that lie end to end, all of one length."""

    def __init__(self, model: LinearModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        ids: Tensor,
        texts: Tensor,
        positions: Tensor,
        reads: Tensor,
        *fold: Tensor,
        spans: tuple[int, ...] = (),
    ) -> Tensor:
        """Outputs [n, width]; only the numbers and how many texts they are of matter."""
        outputs: Tensor = self.model(ids.view(reads.shape[0], -1))
        return outputs


def load(directory: Path, card: Card) -> nn.Module:
    """The network of a bundle in evaluation mode, fp32."""
    if card.task == "embedding":
        return embedder(encoder_of(str(directory)), card.pooling or "mean").eval()
    model = bundle.load_model(directory, card)
    if isinstance(model, LinearModel):
        return PackedLinear(model).eval()
    gives = "words" if model.masked_lm else "labels"
    return PackedNetwork(model.family, model.net, gives).eval()


def embedder(encoder: PreTrainedModel, pooling: str) -> PackedNetwork:
    """An encoder that gives vectors. pooling: "mean", or "cls", and then its last layer computes
    [CLS] alone.
    """
    AttentionInterface.register("bertha", attend)
    encoder.config._attn_implementation = "bertha"
    family, net = FAMILIES[encoder.config.model_type], nn.Module()
    net.add_module(family.encoder, encoder)
    layers = family.layers_of(net)
    if pooling == "cls" and family.bert_shaped:
        layers[-1] = ClsOnlyLayer(layers[-1])
    return PackedNetwork(family, net, pooling)


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
