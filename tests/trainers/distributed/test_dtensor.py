"""Blocks of sharded tensors: where two cuts put them, and what two blocks share."""

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from trainers.distributed.dtensor import ShardExtent, compute_shard_extent, intersect_extents


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dp", [1, 2, 3, 4, 8])
def test_blocks_are_where_two_cuts_put_them(tp: int, dp: int) -> None:
    """Tensor parallelism cuts first, FSDP cuts its parts; also where nothing comes out even."""
    placements = (Replicate(), _StridedShard(0, split_factor=tp), Shard(0))
    for rows in range(30):
        whole = torch.arange(rows)
        for tp_rank in range(tp):
            part = chunk(whole, tp, tp_rank)
            for dp_rank in range(dp):
                expected = chunk(part, dp, dp_rank).tolist()
                (size,), (start,) = compute_shard_extent(
                    (rows,), (1, dp, tp), (0, dp_rank, tp_rank), placements
                )
                assert list(range(start, start + size)) == expected


def chunk(tensor: Tensor, parts: int, index: int) -> Tensor:
    chunks = torch.chunk(tensor, parts)
    return chunks[index] if index < len(chunks) else tensor[:0]


def test_blocks_overlap_where_both_are() -> None:
    assert intersect_extents(ShardExtent((4, 3), (0, 0)), ShardExtent((4, 2), (2, 1))) == (
        (2, 2),
        (2, 1),
    )
    assert intersect_extents(ShardExtent((4, 3), (0, 0)), ShardExtent((4, 3), (4, 0))) is None
    assert intersect_extents(ShardExtent((), ()), ShardExtent((), ())) == ((), ())
