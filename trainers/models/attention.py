"""Attention of texts in rows of a batch, and of texts that lie end to end in one row.

Of texts end to end each must keep to itself. Where Python may look at their lengths, they are gone
through one by one (`Spans`); in a graph, which must not, they are folded: laid into rows no wider
than the longest, as many to a row as fit, for the time of the attention alone (`Fold`). Knows no
model.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Spans(tuple[int, ...]):
    """The lengths of texts that lie end to end in one row: in place of a mask, it lets each text
    attend to itself alone, and nothing is padded.
    """


@dataclass(frozen=True)
class Fold:
    """Texts end to end, and how they lie in r rows of width w.

    texts: [t], which text a token is of. grid: [r, w], the token of a place; any, where none is.
    owners: [r, w], the text of a place; -1 where none is. places: [t], the place of a token, row by
    row.
    """

    texts: Tensor
    grid: Tensor
    owners: Tensor
    places: Tensor

    @property
    def mask(self) -> Tensor:
        """Which places see each other: [r, 1, w, w]."""
        return (self.owners[:, :, None] == self.owners[:, None])[:, None]

    def seen_by(self, reads: Tensor) -> Tensor:
        """Which tokens the tokens `reads` [n] see: [1, 1, n, t]."""
        return (self.texts[reads][:, None] == self.texts)[None, None]


Mask = Tensor | Spans | Fold | None


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Mask,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [b, s, heads, d] of [b, heads, s, d] tensors, by torch's fused kernel.

    Dropping attention weights needs them in memory, so a rate above 0 costs the fused kernel. So
    does `fused = False` of the module, for devices where training is faster without it.
    """
    if isinstance(attention_mask, Spans):
        return _apart(query, key, value, attention_mask, scaling).transpose(1, 2), None
    if isinstance(attention_mask, Fold):
        return _folded(query, key, value, attention_mask, scaling), None
    dropout: Any = module.dropout
    if dropout.p and module.training:
        context = dropout(_weights(query, key, attention_mask, scaling)) @ value
    elif module.training and not getattr(module, "fused", True):
        with torch.autocast(query.device.type, enabled=False):  # weights stay as wide as the query
            context = _weights(query, key, attention_mask, scaling) @ value
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling
        )
    return context.transpose(1, 2), None


def _weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """What each token makes of the others: [b, heads, s, s], rows of which add up to 1."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if mask is not None:
        shut = torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device)
        scores = scores + shut.masked_fill_(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def _apart(query: Tensor, key: Tensor, value: Tensor, spans: Spans, scaling: float) -> Tensor:
    """Attention of each text to itself: [1, heads, s, d] of texts end to end.

    query: of all tokens, or of one token a text.
    """
    own = list(spans)
    asking = own if query.shape[2] == key.shape[2] else [1] * len(own)
    parts = (torch.split(t, n, 2) for t, n in ((query, asking), (key, own), (value, own)))
    attended = [
        F.scaled_dot_product_attention(q, k, v, scale=scaling)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=2)


def _folded(query: Tensor, key: Tensor, value: Tensor, fold: Fold, scaling: float) -> Tensor:
    """Attention of each text to itself, in rows: [1, s, heads, d] of texts end to end."""
    q, k, v = (each.transpose(1, 2)[0][fold.grid].transpose(1, 2) for each in (query, key, value))
    rows = F.scaled_dot_product_attention(q, k, v, attn_mask=fold.mask, scale=scaling)
    return rows.transpose(1, 2).flatten(0, 1)[fold.places][None]
