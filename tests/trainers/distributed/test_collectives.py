"""Collectives forward, and others for the gradient."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.ranks import spawn_ranks
from trainers.distributed.collectives import (
    all_gather,
    all_reduce,
    apply_collective,
    keep_rank0,
    local_chunk,
    reduce_scatter,
)
from trainers.planning.fake import fake_process_group


def whole() -> Tensor:
    """[1, 4, 2], of which each of two ranks has a chunk [1, 2, 2]."""
    return torch.arange(8.0).view(1, 4, 2)


def test_a_gradient_goes_through_the_collective_for_it() -> None:
    x = torch.ones(3, requires_grad=True)
    y = apply_collective(
        x, "group", lambda t, group: 2 * t, lambda t, group: t * (group == "group") * 5
    )
    assert y.tolist() == [2, 2, 2]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_what_a_rank_keeps_of_what_all_have(rank: int) -> None:
    with fake_process_group(4, rank):
        assert local_chunk(whole(), None).tolist() == whole()[:, rank : rank + 1].tolist()
        assert local_chunk(whole(), None).is_contiguous()
        kept = keep_rank0(whole(), None)
        assert kept.tolist() == (whole() if rank == 0 else torch.zeros(1, 4, 2)).tolist()


def test_the_inputs_of_a_collective_stay_as_they_are() -> None:
    x = whole().transpose(0, 2)
    with fake_process_group(1, 0):
        for move in (all_reduce, all_gather, reduce_scatter):
            moved = move(x, None)
            assert moved.shape == x.shape and moved.is_contiguous()
            moved.zero_()
    assert x.tolist() == whole().transpose(0, 2).tolist()


@pytest.mark.multiprocess
def test_two_ranks_exchange_what_they_should(tmp_path: Path) -> None:
    spawn_ranks(_exchange, (tmp_path,), nprocs=2)


def _exchange(rank: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    own = whole() * (rank + 1)
    mine, theirs = slice(2 * rank, 2 * rank + 2), slice(2 - 2 * rank, 4 - 2 * rank)
    assert all_reduce(own, None).tolist() == (3 * whole()).tolist()
    assert reduce_scatter(own, None).tolist() == (3 * whole()[:, mine]).tolist()
    assert all_gather(whole()[:, mine], None).tolist() == whole().tolist()
    # A transposed chunk is gathered by its values, not by its memory.
    turned = whole()[:, mine].transpose(0, 2).contiguous().transpose(0, 2)
    assert all_gather(turned, None).tolist() == whole().tolist()
    x = whole()[:, mine].requires_grad_()
    gathered = apply_collective(x, None, all_gather, reduce_scatter)
    (gathered * own).sum().backward()
    assert x.grad is not None and x.grad.tolist() == (3 * whole()[:, mine]).tolist()
    assert not torch.equal(x.grad, 3 * whole()[:, theirs])
    dist.destroy_process_group()
