"""Transformers' own BERT, made to compute only what a classifier's answer needs.

Weights, names and configuration stay those of Transformers, so a saved model loads there unchanged.
Four things differ while it runs here: dropout is keyed by sample, attention takes torch's fused
kernel, the word embeddings' gradient is added row by row, and the last layer computes queries,
attention output and feed-forward for [CLS] alone, because a classifier reads nothing else. Knows
nothing of recipes, optimizers or layouts.
"""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, BertForSequenceClassification

from trainers.architecture import quiet
from trainers.dropout import Keys, use_keyed_dropout
from trainers.lookup import Lookup


class TextModel(nn.Module):
    """BertForSequenceClassification that reads only [CLS] and drops out by sample."""

    def __init__(self, bert: BertForSequenceClassification) -> None:
        super().__init__()
        AttentionInterface.register("bertha", attend)
        bert.config._attn_implementation = "bertha"
        embeddings, layers = bert.bert.embeddings, bert.bert.encoder.layer
        embeddings.word_embeddings = Lookup.of(embeddings.word_embeddings)
        layers[-1] = ClsOnlyLayer(layers[-1])
        self.bert = bert
        self._keys: Keys = use_keyed_dropout(bert)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, keys: Tensor | None = None
    ) -> Tensor:
        """Logits [b, num_labels] of token ids [b, s].

        mask: [b, s] bool, true where a token is; None when nothing is padded. keys: [b] int64 of
        `dropout.sample_keys`, needed in training mode.
        """
        self._keys.keys = keys
        spread = None if mask is None else mask[:, None, None, :]
        logits: Tensor = self.bert(input_ids=ids, attention_mask=spread).logits
        return logits

    @property
    def table(self) -> Lookup:
        """The word embeddings, whose gradient is not in the hands of autograd."""
        table = self.bert.bert.embeddings.word_embeddings
        assert isinstance(table, Lookup)
        return table

    def save(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors` as Transformers does."""
        with quiet():
            self.bert.save_pretrained(directory)


class ClsOnlyLayer(nn.Module):
    """A last BertLayer that computes its output [b, 1, h] for [CLS] alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = (
            layer.attention,
            layer.intermediate,
            layer.output,
        )

    def forward(self, hidden: Tensor, mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        attention: Any = self.attention
        heads, cls = attention.self, hidden[:, :1]

        def split(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], -1, heads.attention_head_size).transpose(1, 2)

        query, key, value = heads.query(cls), heads.key(hidden), heads.value(hidden)
        context, _weights = attend(
            heads, split(query), split(key), split(value), mask, heads.scaling
        )
        attended = attention.output(context.flatten(2), cls)
        widen: Any = self.intermediate
        narrow: Any = self.output
        output: Tensor = narrow(widen(attended), attended)
        return output


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [b, s, heads, d] of [b, heads, s, d] tensors, by torch's fused kernel.

    Dropping attention weights needs them in memory, so a rate above 0 costs the fused kernel.
    """
    dropout: Any = module.dropout
    if dropout.p and module.training:
        scores = (query @ key.transpose(2, 3)) * scaling
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, float("-inf"))
        context = dropout(scores.softmax(dim=-1)) @ value
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
    return context.transpose(1, 2), None
