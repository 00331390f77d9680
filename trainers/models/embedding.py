"""An embedding table whose gradient is accumulated and all-reduced row by row.

Autograd writes a dense gradient of the whole table for every micro-batch, 47 MB for a BERT of 384
wide, and DistributedDataParallel all-reduces all of it. Here the rows that were looked up are added
into `weight.grad` in place, and only rows that some rank looked up are reduced: every rank knows
the global batch, hence which those are. Same gradient, up to the order of addition.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainers.distributed.collectives import all_reduce, apply_collective, identity
from trainers.distributed.dtensor import shard_extent


class RowGradEmbedding(nn.Embedding):
    """`nn.Embedding` that adds its gradient in place where `row_gradients` is set."""

    row_gradients = True

    _grad_buffer: Tensor | None = None  # kept over steps: fresh pages every step cost more

    @classmethod
    def from_embedding(cls, table: nn.Embedding) -> "RowGradEmbedding":
        """Wrap `table`, sharing its parameter."""
        size, width = table.weight.shape
        wrapped = cls(size, width, padding_idx=table.padding_idx, _weight=table.weight.detach())
        wrapped.weight = table.weight
        return wrapped

    def forward(self, ids: Tensor) -> Tensor:
        """Return rows [b, s, width] of `ids` [b, s]."""
        if isinstance(self.weight, DTensor):
            return self._vocab_parallel_forward(ids, self.weight)
        if not (self.row_gradients and torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(ids)
        rows: Tensor = _RowGradLookup.apply(self, self.weight, ids)  # type: ignore[no-untyped-call]
        return rows

    def _vocab_parallel_forward(self, ids: Tensor, weight: DTensor) -> Tensor:
        """Look up the rows this rank holds, zeros for the others, and sum over the ranks."""
        start = shard_extent(weight).offsets[0]
        table = weight.to_local()
        is_local = (ids >= start) & (ids < start + len(table))
        padding = None if self.padding_idx is None else self.padding_idx - start
        if padding is not None and not 0 <= padding < len(table):
            padding = None
        rows = F.embedding((ids - start).masked_fill(~is_local, 0), table, padding)
        rows = rows.masked_fill(~is_local.unsqueeze(-1), 0.0)
        return apply_collective(rows, weight.device_mesh.get_group(), all_reduce, identity)

    def add_gradient(self, ids: Tensor, gradient: Tensor) -> None:
        """Add `gradient` [b, s, width] of the rows `ids` [b, s] to `weight.grad`."""
        weight = self.weight
        if self.padding_idx is not None:
            gradient = gradient.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)
        if weight.grad is None:
            if self._grad_buffer is None or self._grad_buffer.device != weight.device:
                self._grad_buffer = torch.empty_like(weight)
            weight.grad = self._grad_buffer.zero_()
        weight.grad.index_add_(0, ids.flatten(), gradient.flatten(0, -2).to(weight.dtype))

    def average_gradient(self, ids: Tensor) -> None:
        """Average the gradient over all ranks. ids [n]: the distinct rows any rank looked up."""
        assert self.weight.grad is not None, "every rank looks something up"
        rows = self.weight.grad[ids]
        dist.all_reduce(rows)
        self.weight.grad[ids] = rows / dist.get_world_size()


class _RowGradLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding: RowGradEmbedding, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.embedding = embedding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.embedding.add_gradient(*ctx.saved_tensors, gradient)
        return None, None, None
