"""What tensor-parallel ranks tell each other inside a model: forward one way, backward another.

Plain tensors go in and come out; nothing is looked up by shape, so micro-batches of any length cost
the same. Dimension 1 is the sequence.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Move = Callable[[Tensor, Any], Tensor]


def same(tensor: Tensor, group: Any) -> Tensor:
    """What this rank has."""
    return tensor


def total(tensor: Tensor, group: Any) -> Tensor:
    """The sum of what all ranks have."""
    summed = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed, group=group)
    return summed


def gathered(tensor: Tensor, group: Any) -> Tensor:
    """The parts of the sequence that the ranks have, side by side."""
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in _ranks(group)]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dim=1)


def own_part(tensor: Tensor, group: Any) -> Tensor:
    """This rank's part of a sequence that all ranks have."""
    return tensor.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)].contiguous()


def own_part_of_total(tensor: Tensor, group: Any) -> Tensor:
    """This rank's part of the sum of what all ranks have."""
    parts = [part.contiguous() for part in tensor.chunk(dist.get_world_size(group), dim=1)]
    summed = torch.empty_like(parts[0])
    dist.reduce_scatter(summed, parts, group=group)
    return summed


def of_first(tensor: Tensor, group: Any) -> Tensor:
    """What the first rank has; nothing of the others, so that a sum counts it once."""
    return tensor if dist.get_rank(group) == 0 else torch.zeros_like(tensor)


def exchanged(tensor: Tensor, group: Any, there: Move, back: Move) -> Tensor:
    """`there(tensor)`, whose gradient goes `back`."""
    moved: Tensor = _Exchange.apply(tensor, group, there, back)  # type: ignore[no-untyped-call]
    return moved


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any, there: Move, back: Move) -> Tensor:
        ctx.group, ctx.back = group, back
        moved = there(tensor, group)
        return moved.view_as(moved) if moved is tensor else moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradient, ctx.group), None, None, None


def _ranks(group: Any) -> range:
    return range(dist.get_world_size(group))
