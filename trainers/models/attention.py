"""Attention over packed texts: each text to itself, by the kernel that is fastest where it runs.

On CUDA in 16 bits it is flash attention over texts of any lengths, without padding. Elsewhere
texts are padded into rows for the time of the attention alone; on a CPU inference goes text by
text. Which kernel runs never changes what is computed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.packed import PackedTexts, PaddedView

HALF = (torch.float16, torch.bfloat16)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PackedTexts | PaddedView,
    scaling: float,
    reads: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute attention [1, s, heads, d] of packed tokens [1, heads, t, d] (of Transformers).

    query: of all t tokens, or of the tokens `reads` [n]. attention_mask: the packed texts; in a
    graph that is exported, which cannot loop over texts, a padded view of them.
    """
    dropout: Any = module.dropout
    packed, heads = attention_mask, (query, key, value)
    if isinstance(packed, PaddedView):
        attended = _attend_in_graph(*heads, packed, reads, scaling)
    elif packed.width:
        drop = dropout if module.training and dropout.p > 0 else None
        attended = _attend_in_static_rows(*heads, packed, reads, scaling, drop)
    elif module.training and dropout.p > 0:
        attended = _attend_dropped(*heads, packed, reads, scaling, dropout)
    elif has_varlen_attention(query.device, query.dtype):
        attended = _attend_varlen(*heads, packed, reads, scaling)
    elif torch.is_grad_enabled() or query.device.type != "cpu":  # a launch a text costs more there
        fused = getattr(module, "fused", True)
        attended = _attend_in_rows(*heads, packed, reads, scaling, fused)
    else:
        attended = _attend_per_text(*heads, packed, reads, scaling)
    return attended.transpose(1, 2), None


def has_varlen_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch has flash attention over texts of various lengths there: from Ampere."""
    has_kernel = device.type == "cuda" and dtype in HALF
    return has_kernel and torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedTexts,
    reads: Tensor | None,
    scaling: float,
) -> Tensor:
    """Attend by flash attention over sequences of various lengths."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    keys, most = packed.offsets, packed.longest
    queries, most_queried = keys, most
    if reads is not None:  # one token of each text
        queries, most_queried = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device), 1
        keys = keys[: len(queries)]
    attended = varlen_attn(q, k, v, queries, keys, most_queried, most, scale=scaling)
    assert isinstance(attended, Tensor)
    return attended.transpose(0, 1)[None]


def _attend_per_text(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedTexts,
    reads: Tensor | None,
    scaling: float,
) -> Tensor:
    """Attend text by text; where tokens are read, they are one of each text."""
    key_lengths = list(packed.lengths if reads is None else packed.lengths[: len(reads)])
    query_lengths = key_lengths if reads is None else [1] * len(key_lengths)
    split = ((query, query_lengths), (key, key_lengths), (value, key_lengths))
    parts = (torch.split(tensor[:, :, : sum(sizes)], sizes, 2) for tensor, sizes in split)
    attended = [
        F.scaled_dot_product_attention(q, k, v, scale=scaling)
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(attended, dim=2)


def _attend_in_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedTexts,
    reads: Tensor | None,
    scaling: float,
    fused: bool,
) -> Tensor:
    """Attend with the texts laid out in rows, several short ones in a row."""
    if reads is not None:  # they are few: all rows of keys are searched
        return _attend(query, key, value, packed.read_bias(key.dtype), scaling, fused)
    if packed.is_even:
        q, k, v = (_cut_into_rows(tensor, packed.longest) for tensor in (query, key, value))
        return _attend(q, k, v, None, scaling, fused).transpose(0, 1).flatten(1, 2)[None]
    view = packed.rows
    q, k, v = (_to_rows(tensor, view) for tensor in (query, key, value))
    rows = _attend(q, k, v, view.bias(q.dtype), scaling, fused)
    return view.scatter(rows.transpose(1, 2)).transpose(0, 1)[None]


def _attend_in_static_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedTexts,
    reads: Tensor | None,
    scaling: float,
    dropout: nn.Module | None,
) -> Tensor:
    """Attend where tokens lie in rows already; dropped weights need one text a row, in order."""
    if reads is not None and dropout is None:
        return _attend(query, key, value, packed.read_bias(key.dtype), scaling, True)
    k, v = _cut_into_rows(key, packed.width), _cut_into_rows(value, packed.width)
    bias = packed.row_bias(key.dtype)
    if reads is not None:
        q, own = query[0].transpose(0, 1)[:, :, None], packed.texts[reads]  # [n, heads, 1, d]
        weights = _attention_weights(q, k[own], bias[own, :, :1], scaling)
        attended = (weights if dropout is None else dropout(weights)) @ v[own]
        return attended[:, :, 0].transpose(0, 1)[None]
    q = _cut_into_rows(query, packed.width)
    if dropout is None:
        rows = _attend(q, k, v, bias, scaling, True)
    else:
        rows = dropout(_attention_weights(q, k, bias, scaling)) @ v
    return rows.transpose(0, 1).flatten(1, 2)[None]


def _attend_in_graph(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    view: PaddedView,
    reads: Tensor | None,
    scaling: float,
) -> Tensor:
    """Attend within the rows of `view`, in operations that a graph can hold."""
    mask = view.mask if reads is None else view.mask_for_queries(reads)
    if reads is None:
        query, key, value = (_to_rows(tensor, view) for tensor in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    if reads is not None:
        return attended
    return view.scatter(attended.transpose(1, 2)).transpose(0, 1)[None]


def _attend_dropped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: PackedTexts,
    reads: Tensor | None,
    scaling: float,
    dropout: nn.Module,
) -> Tensor:
    """Attend with attention weights dropped: one text a row, as their masks are keyed by text."""
    view = packed.text_rows
    k, v = _to_rows(key, view), _to_rows(value, view)
    empty = (view.text_at_slot < 0)[:, None, None]
    bias = torch.zeros(empty.shape, dtype=key.dtype, device=key.device)
    bias = bias.masked_fill_(empty, float("-inf"))
    if reads is None:
        weights = dropout(_attention_weights(_to_rows(query, view), k, bias, scaling))
        return view.scatter((weights @ v).transpose(1, 2)).transpose(0, 1)[None]
    n = len(reads)
    q = query[0].transpose(0, 1)[:, :, None]  # [n, heads, 1, d]
    weights = dropout(_attention_weights(q, k[:n], bias[:n], scaling))
    attended: Tensor = weights @ v[:n]
    return attended[:, :, 0].transpose(0, 1)[None]


def _cut_into_rows(tensor: Tensor, width: int) -> Tensor:
    """Return packed tokens [1, heads, t, d] as rows [t / width, heads, width, d], a view."""
    rows: Tensor = tensor[0].unflatten(1, (-1, width))  # type: ignore[no-untyped-call]
    return rows.transpose(0, 1)


def _to_rows(tensor: Tensor, view: PaddedView) -> Tensor:
    """Return packed tokens [1, heads, t, d] as rows [r, heads, w, d]."""
    return view.gather(tensor[0].transpose(0, 1)).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scaling: float, fused: bool
) -> Tensor:
    """Attend by torch's fused kernel, or multiplied out where that trains faster."""
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    with torch.autocast(query.device.type, enabled=False):  # weights stay as wide as the query
        return _attention_weights(query, key, bias, scaling) @ value


def _attention_weights(query: Tensor, key: Tensor, bias: Tensor | None, scaling: float) -> Tensor:
    """Return softmax(q k^T) [b, heads, s, s]."""
    scores = (query * scaling) @ key.transpose(2, 3)
    return (scores if bias is None else scores + bias).softmax(dim=-1)
