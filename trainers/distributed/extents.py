"""Where in the whole tensor the part that a rank holds lies.

A part is always one block. FSDP2 cuts what tensor parallelism has cut already, so along a dimension
that both cut (`_StridedShard`) the mesh dimension of the data ranks comes last, though it stands
first in the mesh. Torch's own arithmetic of it is wrong for some uneven cuts (9 rows, tp 2 and
dp_shard 4), hence this one.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Shard
from torch.distributed.tensor.placement_types import _StridedShard

Extent = tuple[tuple[int, ...], tuple[int, ...]]


def extent(tensor: Tensor) -> Extent:
    """(shape, offsets) of this rank's part inside the whole tensor."""
    if not isinstance(tensor, DTensor):
        return tuple(tensor.shape), (0,) * tensor.dim()
    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "a rank holds tensors of its own meshes only"
    return block(tuple(tensor.shape), tuple(mesh.shape), tuple(coordinate), tensor.placements)


def block(
    shape: tuple[int, ...],
    mesh_shape: tuple[int, ...],
    coordinate: tuple[int, ...],
    placements: tuple[Placement, ...],
) -> Extent:
    """(shape, offsets) of the part at `coordinate` of the mesh, cut as `torch.chunk` cuts."""
    sizes, offsets = list(shape), [0] * len(shape)
    cuts = list(zip(placements, mesh_shape, coordinate, strict=True))
    for placement, parts, index in sorted(cuts, key=lambda c: isinstance(c[0], _StridedShard)):
        if not isinstance(placement, Shard | _StridedShard):
            assert placement.is_replicate(), "a parameter or a moment is no sum"
            continue
        whole = sizes[placement.dim]
        width = -(-whole // parts)
        start = min(index * width, whole)
        sizes[placement.dim] = min(width, whole - start)
        offsets[placement.dim] += start
    return tuple(sizes), tuple(offsets)


def overlap(one: Extent, other: Extent) -> Extent | None:
    """The block that lies in both, or None where it is empty."""
    starts = tuple(map(max, one[1], other[1]))
    ends = tuple(
        min(a + m, b + n) for m, a, n, b in zip(one[0], one[1], other[0], other[1], strict=True)
    )
    sizes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return (sizes, starts) if all(size > 0 for size in sizes) else None


def slices(inner: Extent, outer_offsets: tuple[int, ...]) -> tuple[slice, ...]:
    """The block `inner` as indices into a tensor that begins at `outer_offsets` of the whole."""
    sizes, offsets = inner
    return tuple(
        slice(offset - origin, offset - origin + size)
        for size, offset, origin in zip(sizes, offsets, outer_offsets, strict=True)
    )
