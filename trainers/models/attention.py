"""Attention over padded batches and over packed ones, where texts lie end to end in one row.

Packed texts must not attend to each other. In Python their lengths drive a loop over the texts
(`SequenceLengths`); an exported graph cannot loop over data, so there they are gathered into a
padded view, several short texts to a row, for the time of the attention alone (`PaddedView`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SequenceLengths(tuple[int, ...]):
    """Sequence lengths of a packed batch, passed in place of a mask: texts attend to themselves."""


@dataclass(frozen=True)
class PaddedView:
    """How the t tokens of a packed batch are gathered into r rows of width w.

    text_ids: [t], the text of a token. token_at_slot: [r, w], the token in a slot; arbitrary where
    the slot is empty. text_at_slot: [r, w], its text; -1 where empty. slot_of_token: [t], flat.
    """

    text_ids: Tensor
    token_at_slot: Tensor
    text_at_slot: Tensor
    slot_of_token: Tensor

    @property
    def attention_mask(self) -> Tensor:
        """[r, 1, w, w] bool: slots of the same text see each other."""
        return (self.text_at_slot[:, :, None] == self.text_at_slot[:, None])[:, None]

    def mask_for_queries(self, reads: Tensor) -> Tensor:
        """Return which tokens the tokens `reads` [n] see: [1, 1, n, t] bool."""
        return (self.text_ids[reads][:, None] == self.text_ids)[None, None]


AttentionMask = Tensor | SequenceLengths | PaddedView | None


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionMask,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention [b, s, heads, d] of [b, heads, s, d] tensors (Transformers' interface).

    Torch's fused kernel is used unless attention weights are dropped, which needs them in memory,
    or the module has `fused = False`, for devices where training is faster without it.
    """
    if isinstance(attention_mask, SequenceLengths):
        attended = _attend_per_text(query, key, value, attention_mask, scaling)
        return attended.transpose(1, 2), None
    if isinstance(attention_mask, PaddedView):
        return _attend_padded(query, key, value, attention_mask, scaling), None
    dropout: Any = module.dropout
    if dropout.p and module.training:
        context = dropout(_attention_weights(query, key, attention_mask, scaling)) @ value
    elif module.training and not getattr(module, "fused", True):
        with torch.autocast(query.device.type, enabled=False):  # weights stay as wide as the query
            context = _attention_weights(query, key, attention_mask, scaling) @ value
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
    return context.transpose(1, 2), None


def _attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Return softmax(q k^T) [b, heads, s, s]."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
        scores = scores + bias.masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def _attend_per_text(
    query: Tensor, key: Tensor, value: Tensor, lengths: SequenceLengths, scaling: float
) -> Tensor:
    """Attend text by text in a packed batch: [1, heads, s, d].

    query: of all tokens, or of one token per text.
    """
    key_lengths = list(lengths)
    per_token = query.shape[2] == key.shape[2]
    query_lengths = key_lengths if per_token else [1] * len(key_lengths)
    split = ((query, query_lengths), (key, key_lengths), (value, key_lengths))
    parts = (torch.split(tensor, sizes, 2) for tensor, sizes in split)
    attended = [
        F.scaled_dot_product_attention(q, k, v, scale=scaling)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=2)


def _attend_padded(
    query: Tensor, key: Tensor, value: Tensor, view: PaddedView, scaling: float
) -> Tensor:
    """Attend within the rows of `view`: [1, s, heads, d] of a packed batch."""
    q, k, v = (
        packed.transpose(1, 2)[0][view.token_at_slot].transpose(1, 2)
        for packed in (query, key, value)
    )
    rows = F.scaled_dot_product_attention(q, k, v, attn_mask=view.attention_mask, scale=scaling)
    return rows.transpose(1, 2).flatten(0, 1)[view.slot_of_token][None]
