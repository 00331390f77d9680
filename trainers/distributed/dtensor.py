"""What a rank holds of a tensor: its local part, and where in the whole that part lies."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainers.distributed.extents import extent


def to_local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part(whole: Tensor, like: Tensor) -> Tensor:
    """The part of `whole` that this rank holds of `like`."""
    shape, offsets = extent(like)
    return whole[tuple(slice(o, o + size) for o, size in zip(offsets, shape, strict=True))]


def num_parts(tensor: Tensor) -> int:
    """Into how many different parts the ranks of its mesh cut `tensor`."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh, parts = tensor.device_mesh, 1
    for dimension, placement in enumerate(tensor.placements):
        if not placement.is_replicate():
            parts *= mesh.size(dimension)
    return parts


def complete(parameters: Iterable[nn.Parameter]) -> None:
    """Add up gradients of which every rank of a mesh holds a summand, all in one exchange.

    Sequence parallelism leaves those: each rank saw a part of the sequence.
    """
    partial = [p for p in parameters if p.grad is not None and _is_partial(p.grad)]
    if not partial:
        return
    summands = [to_local(p.grad) for p in partial if p.grad is not None]
    flat = torch.cat([summand.flatten() for summand in summands])
    first = partial[0].grad
    assert isinstance(first, DTensor)
    dist.all_reduce(flat, group=first.device_mesh.get_group())
    for parameter, whole in zip(
        partial, torch.split(flat, [s.numel() for s in summands]), strict=True
    ):
        assert isinstance(parameter, DTensor)
        parameter.grad = DTensor.from_local(
            whole.view(parameter.shape), parameter.device_mesh, parameter.placements
        )


def _is_partial(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and any(p.is_partial() for p in tensor.placements)


def squared_norm(gradients: Iterable[Tensor], num_ranks: int, device: torch.device) -> Tensor:
    """Sum of squares of whole gradients, of which every one of `num_ranks` ranks holds parts.

    A gradient that n parts make up is held num_ranks / n times over, so each rank counts that
    share of its own; the sum over all ranks of the run is exact.
    """
    total = torch.zeros((), device=device)
    by_copies: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        by_copies.setdefault(num_parts(gradient), []).append(to_local(gradient))
    for parts, locals_ in by_copies.items():
        norms = torch.stack(torch._foreach_norm(locals_))
        total += norms.square().sum() * (parts / num_ranks)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total
