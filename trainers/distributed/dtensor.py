"""The part of a tensor that this rank holds, and what the ranks must add up to make a whole.

A part is always one block. FSDP2 cuts what tensor parallelism has cut already, so along a dimension
that both cut (`_StridedShard`) the data-parallel mesh dimension is applied last, though it comes
first in the mesh. Torch's own offsets are wrong for some uneven cuts (9 rows at tp 2, dp_shard 4).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor.placement_types import _StridedShard


class ShardExtent(NamedTuple):
    """A block of a tensor."""

    shape: tuple[int, ...]
    offsets: tuple[int, ...]


def shard_extent(tensor: Tensor) -> ShardExtent:
    """Return where this rank's part lies in the whole of `tensor`."""
    if not isinstance(tensor, DTensor):
        return ShardExtent(tuple(tensor.shape), (0,) * tensor.dim())
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "a rank holds tensors of its own meshes only"
    return compute_shard_extent(
        tuple(tensor.shape), tuple(mesh.shape), tuple(coordinate), tensor.placements
    )


def compute_shard_extent(
    shape: tuple[int, ...],
    mesh_shape: tuple[int, ...],
    coordinate: tuple[int, ...],
    placements: tuple[Placement, ...],
) -> ShardExtent:
    """Return the block at `coordinate` of the mesh of a tensor of `shape`."""
    sizes, offsets = list(shape), [0] * len(shape)
    cuts = list(zip(placements, mesh_shape, coordinate, strict=True))
    for placement, parts, index in sorted(cuts, key=lambda c: isinstance(c[0], _StridedShard)):
        if not isinstance(placement, Shard | _StridedShard):
            assert placement.is_replicate(), "a parameter or a moment is never partial"
            continue
        # As `torch.chunk` cuts: parts of ceil(n / parts) rows, so the last ones may be smaller or
        # empty. Whoever uses a part must expect both.
        whole = sizes[placement.dim]
        width = -(-whole // parts)
        start = min(index * width, whole)
        sizes[placement.dim] = min(width, whole - start)
        offsets[placement.dim] += start
    return ShardExtent(tuple(sizes), tuple(offsets))


def intersect_extents(one: ShardExtent, other: ShardExtent) -> ShardExtent | None:
    """Return the block that lies in both, or None where it is empty."""
    (one_shape, one_offsets), (other_shape, other_offsets) = one, other
    starts = tuple(map(max, one_offsets, other_offsets))
    ends = tuple(
        min(a + m, b + n)
        for m, a, n, b in zip(one_shape, one_offsets, other_shape, other_offsets, strict=True)
    )
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return ShardExtent(sizes, starts) if all(size > 0 for size in sizes) else None


def slices_within(block: ShardExtent, origin: tuple[int, ...]) -> tuple[slice, ...]:
    """Return `block` as indices into a tensor whose first element is at `origin` of the whole."""
    return tuple(
        slice(offset - start, offset - start + size)
        for size, offset, start in zip(block.shape, block.offsets, origin, strict=True)
    )


def to_local(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_shard(whole: Tensor, like: Tensor) -> Tensor:
    """Return the part of `whole` that this rank holds of `like`."""
    return whole[slices_within(shard_extent(like), (0,) * whole.dim())]


def num_shards(tensor: Tensor) -> int:
    """Return into how many different parts the ranks of its mesh cut `tensor`."""
    if not isinstance(tensor, DTensor):
        return 1
    mesh, parts = tensor.device_mesh, 1
    for dimension, placement in enumerate(tensor.placements):
        if not placement.is_replicate():
            parts *= mesh.size(dimension)
    return parts


def reduce_partial_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum gradients that are `Partial` over their mesh, all in one all-reduce.

    Sequence parallelism leaves those: a norm's weight is replicated, but each rank computed its
    gradient from its own part of the sequence.
    """
    partial = [p for p in parameters if p.grad is not None and _is_partial(p.grad)]
    if not partial:
        return
    summands = [to_local(p.grad) for p in partial if p.grad is not None]
    flat = torch.cat([summand.flatten() for summand in summands])
    first = partial[0].grad
    assert isinstance(first, DTensor)
    dist.all_reduce(flat, group=first.device_mesh.get_group())
    sums = torch.split(flat, [summand.numel() for summand in summands])
    for parameter, whole in zip(partial, sums, strict=True):
        assert isinstance(parameter, DTensor)
        parameter.grad = DTensor.from_local(
            whole.view(parameter.shape), parameter.device_mesh, parameter.placements
        )


def _is_partial(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and any(p.is_partial() for p in tensor.placements)


def squared_norm(gradients: Iterable[Tensor], num_ranks: int, device: torch.device) -> Tensor:
    """Return the sum of squares of whole gradients, of which `num_ranks` ranks hold parts each.

    A gradient in n different parts is held num_ranks / n times over, so each rank counts that
    share of its own part; the sum over all ranks of the run is then exact.
    """
    total = torch.zeros((), device=device)
    by_shards: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        by_shards.setdefault(num_shards(gradient), []).append(to_local(gradient))
    for shards, local_gradients in by_shards.items():
        norms = torch.stack(torch._foreach_norm(local_gradients))
        total += norms.square().sum() * (shards / num_ranks)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total
