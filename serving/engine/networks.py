"""The torch network of a bundle, whatever its task, over a packed batch.

Embeddings, norms and linear layers see one row of tokens, and attention keeps each text to itself.

    network = load_network(directory, card)
    outputs = network(*map(torch.from_numpy, packed.arrays), lengths=packed.lengths)
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, PreTrainedModel

from trainers.models.attention import HALF, attention_forward
from trainers.models.bert import ClsOnlyLayer
from trainers.models.build import LinearModel, load_model
from trainers.models.card import ModelCard
from trainers.models.config import ModelError, pretrained_source
from trainers.models.families import FAMILIES, ModelFamily
from trainers.models.packed import PackedTexts, PaddedView


class PackedNetwork(nn.Module):
    """A BERT over a packed batch.

    output: "labels" or "words", logits of either; "cls" or "mean", vectors of length 1, of the
    token that is read or over its whole text; "tokens", the hidden state of each that is read.
    """

    def __init__(self, family: ModelFamily, net: nn.Module, output: str) -> None:
        super().__init__()
        self.family, self.net, self.output = family, net, output

    def forward(
        self,
        ids: Tensor,
        texts: Tensor,
        positions: Tensor,
        reads: Tensor,
        grid: Tensor | None = None,
        owners: Tensor | None = None,
        places: Tensor | None = None,
        lengths: tuple[int, ...] = (),
    ) -> Tensor:
        """Return outputs [n, width] of the tokens that a `PackedBatch` reads.

        lengths: of the texts, for attention text by text; an exported graph is given grid, owners
        and places instead, for attention over padded rows.
        """
        packed: PackedTexts | PaddedView = PackedTexts(lengths, texts, positions, reads)
        if grid is not None and owners is not None and places is not None:
            packed = PaddedView(texts, grid, owners, places)
        hidden, only_read = self.family.embed_tokens(self.net, ids[None], positions[None]), False
        for layer in self.family.get_layers(self.net):
            only_read = isinstance(layer, ClsOnlyLayer)
            hidden = layer(hidden, packed, reads) if only_read else layer(hidden, packed)
        read = hidden[0] if only_read else hidden[0, reads]
        if self.output == "words":
            return self.family.predict_tokens(self.net, read)
        if self.output == "labels":
            return self.family.classify(self.net, read[:, None])
        if self.output == "tokens":
            return read
        if self.output == "mean":
            read = _mean_by_text(hidden[0], texts, reads)
        return F.normalize(read, dim=-1)


def _mean_by_text(hidden: Tensor, texts: Tensor, reads: Tensor) -> Tensor:
    """Return the mean [n, h] of `hidden` [t, h] over the text of each of the tokens `reads` [n].

    reads: one of each text, or the same again.
    """
    # A graph format has no sum by segments; this costs n * t * h.
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        of_text = (texts[reads][:, None] == texts).to(hidden.dtype)
        return of_text @ hidden / of_text.sum(dim=1, keepdim=True)
    wide = torch.float32 if hidden.dtype in HALF else hidden.dtype  # sums of many tokens
    sums = hidden.new_zeros((len(reads), hidden.shape[1]), dtype=wide)
    sums = sums.index_add(0, texts, hidden.to(wide))
    counts = hidden.new_zeros(len(reads), dtype=wide)
    counts = counts.index_add(0, texts, torch.ones_like(texts, dtype=wide))
    return (sums / counts[:, None])[texts[reads]]


class PackedLinear(nn.Module):
    """A linear model over a packed batch of texts of numbers, all of one length."""

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
        lengths: tuple[int, ...] = (),
    ) -> Tensor:
        """Return outputs [n, width]; only the numbers and the number of texts matter."""
        outputs: Tensor = self.model(ids.view(reads.shape[0], -1))
        return outputs


def load_network(directory: Path, card: ModelCard) -> nn.Module:
    """Load the network of a bundle in evaluation mode, fp32."""
    if card.task == "embedding":
        return build_embedder(load_encoder_model(str(directory)), card.pooling or "mean").eval()
    model = load_model(directory)
    if isinstance(model, LinearModel):
        return PackedLinear(model).eval()
    output = "words" if model.masked_lm else "labels"
    return PackedNetwork(model.family, model.net, output).eval()


def build_embedder(encoder: PreTrainedModel, pooling: str) -> PackedNetwork:
    """Wrap an encoder as a network of vectors.

    pooling: "mean"; "cls", and then the last layer computes [CLS] alone; or "tokens" for none.
    """
    AttentionInterface.register("bertha", attention_forward)
    encoder.config._attn_implementation = "bertha"
    family, net = FAMILIES[encoder.config.model_type], nn.Module()
    net.add_module(family.encoder, encoder)
    layers = family.get_layers(net)
    if pooling == "cls" and family.supports_cls_only:
        layers[-1] = ClsOnlyLayer(layers[-1])
    return PackedNetwork(family, net, pooling)


def load_encoder_model(source: str) -> Any:
    """Load the encoder of a directory, a hub name or `package:NAME`, without a head.

    Raises ModelError if there is none, or its type is not supported.
    """
    with pretrained_source(source) as directory:
        encoder = AutoModel.from_pretrained(
            directory, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        )
    model_type = encoder.config.model_type
    if model_type not in FAMILIES:
        raise ModelError(
            f"{source}: a {model_type} model; embeddings are served of models of type "
            f"{', '.join(FAMILIES)}"
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # nothing reads it
    return encoder
