"""Padded batches, the rows that Transformers' own models take, beside packed ones."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from trainers.models.dropout import DropoutKeys, KeyedDropout, use_keyed_dropout
from trainers.models.packed import PackedTexts


def pack(ids: Tensor, present: Tensor, keys: Tensor | None = None) -> tuple[Tensor, PackedTexts]:
    """Return the inputs of a `TextModel` for padded ids [n, s]."""
    return ids[present][None], PackedTexts.from_lengths(present.sum(1).tolist(), keys=keys)


def one_text(ids: Tensor) -> tuple[Tensor, PackedTexts]:
    """Return the inputs of a `TextModel` for one text, ids [1, s]."""
    return pack(ids, torch.ones_like(ids, dtype=torch.bool))


def use_padded_dropout(net: Any, keys: Tensor) -> None:
    """Give a model of Transformers, which computes padded rows, the masks of keyed dropout."""
    use_keyed_dropout(net)
    for module in net.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, KeyedDropout):
                setattr(module, name, _PaddedDropout(child.p, child.site, keys))
    AttentionInterface.register("padded", _attend)
    net.config._attn_implementation = "padded"


def _attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention by the book, [b, s, heads, d], its weights dropped by the module's own dropout."""
    scores = (q @ k.transpose(2, 3)) * scaling
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return (module.dropout(weights) @ v).transpose(1, 2), None


class _PaddedDropout(nn.Module):
    """The mask of each row [s, channels] of a padded batch as if its text were packed alone."""

    def __init__(self, p: float, site: int, keys: Tensor) -> None:
        super().__init__()
        self.p, self.site, self.keys = p, site, keys

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        kept = torch.cat([self._keep(x[row : row + 1], row) for row in range(len(x))])
        return torch.where(kept, x, 0.0) / (1.0 - self.p)

    def _keep(self, x: Tensor, row: int) -> Tensor:
        keys = DropoutKeys()
        keys.packed = PackedTexts.from_lengths([x.shape[-2]], keys=self.keys[row : row + 1])
        return KeyedDropout(self.p, self.site, keys).keep_mask(x.shape, x.device)
