"""An embedding table whose gradient is added, and exchanged, row by row.

Autograd writes a dense gradient of the whole table for every micro-batch, 47 MB for a BERT of 384
wide, and DistributedDataParallel exchanges all of it. Here the rows that were looked up are added
into `weight.grad` where they are, and only rows that some rank looked up travel: every rank knows
the global batch, hence which those are. Same gradient, to the order of addition. Where ranks share
the rows of the table itself, each looks up its own.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainers.distributed.collectives import exchanged, same, total
from trainers.distributed.extents import extent


class Lookup(nn.Embedding):
    """`nn.Embedding` with the same weight, adding its gradient in place where `by_row`."""

    by_row = True

    _held: Tensor | None = None  # the memory of the gradient: fresh pages every step cost more

    @classmethod
    def of(cls, table: nn.Embedding) -> "Lookup":
        """The same table, sharing its parameter."""
        size, width = table.weight.shape
        lookup = cls(size, width, padding_idx=table.padding_idx, _weight=table.weight.detach())
        lookup.weight = table.weight
        return lookup

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [b, s, width] of `ids` [b, s]."""
        if isinstance(self.weight, DTensor):
            return self._shared(ids, self.weight)
        if not (self.by_row and torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(ids)
        rows: Tensor = _InPlace.apply(self, self.weight, ids)  # type: ignore[no-untyped-call]
        return rows

    def _shared(self, ids: Tensor, weight: DTensor) -> Tensor:
        """Rows of a table whose rows the ranks of its mesh share, each giving those it has."""
        _, (start, _) = extent(weight)
        rows = weight.to_local()
        held = (ids >= start) & (ids < start + len(rows))
        padding = None if self.padding_idx is None else self.padding_idx - start
        if padding is not None and not 0 <= padding < len(rows):
            padding = None
        own = F.embedding((ids - start).masked_fill(~held, 0), rows, padding)
        own = own.masked_fill(~held.unsqueeze(-1), 0.0)
        return exchanged(own, weight.device_mesh.get_group(), total, same)

    def add_gradient(self, ids: Tensor, gradient: Tensor) -> None:
        """Add `gradient` [b, s, width] of the rows `ids` [b, s]."""
        weight = self.weight
        if self.padding_idx is not None:
            gradient = gradient.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
        if weight.grad is None:
            if self._held is None or self._held.device != weight.device:
                self._held = torch.empty_like(weight)
            weight.grad = self._held.zero_()
        weight.grad.index_add_(0, ids.flatten(), gradient.flatten(0, -2).to(weight.dtype))

    def average_gradient(self, ids: Tensor) -> None:
        """Average the gradient over all ranks. ids [n]: every row that any rank looked up, once."""
        assert self.weight.grad is not None, "every rank looks something up"
        rows = self.weight.grad[ids]
        dist.all_reduce(rows)
        self.weight.grad[ids] = rows / dist.get_world_size()


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lookup: Lookup, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.lookup = lookup
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.lookup.add_gradient(*ctx.saved_tensors, gradient)
        return None, None, None
