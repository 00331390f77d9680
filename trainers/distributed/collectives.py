"""Collectives that autograd can go through: one move forward, another for the gradient.

Tensors are plain, so micro-batches of any length cost the same: nothing is looked up by shape.
Dimension 1 is the sequence.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Collective = Callable[[Tensor, Any], Tensor]


def identity(tensor: Tensor, group: Any) -> Tensor:
    """Return `tensor`."""
    return tensor


def all_reduce(tensor: Tensor, group: Any) -> Tensor:
    """Return the sum over the ranks."""
    summed = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(summed, group=group)
    return summed


def all_gather(tensor: Tensor, group: Any) -> Tensor:
    """Concatenate the ranks' chunks of the sequence."""
    size = dist.get_world_size(group)
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, tensor.contiguous(), group=group)
    return torch.cat(parts, dim=1)


def local_chunk(tensor: Tensor, group: Any) -> Tensor:
    """Return this rank's chunk of a sequence that every rank has."""
    return tensor.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)].contiguous()


def reduce_scatter(tensor: Tensor, group: Any) -> Tensor:
    """Return this rank's chunk of the sum over the ranks."""
    parts = [part.contiguous() for part in tensor.chunk(dist.get_world_size(group), dim=1)]
    summed = torch.empty_like(parts[0])
    dist.reduce_scatter(summed, parts, group=group)
    return summed


def keep_rank0(tensor: Tensor, group: Any) -> Tensor:
    """Return `tensor` on the first rank and zeros on the others, so that a sum counts it once."""
    return tensor if dist.get_rank(group) == 0 else torch.zeros_like(tensor)


def apply_collective(
    tensor: Tensor, group: Any, forward: Collective, backward: Collective
) -> Tensor:
    """Return `forward(tensor)`, whose gradient goes through `backward`."""
    moved: Tensor = _AutogradCollective.apply(tensor, group, forward, backward)  # type: ignore[no-untyped-call]
    return moved


class _AutogradCollective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, group: Any, forward: Collective, backward: Collective
    ) -> Tensor:
        ctx.group, ctx.collective = group, backward
        moved = forward(tensor, group)
        return moved.view_as(moved) if moved is tensor else moved

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.collective(gradient, ctx.group), None, None, None
