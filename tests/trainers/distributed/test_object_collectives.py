"""Tasks on one rank or all: their values, and their errors, everywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.support.ranks import spawn_ranks
from trainers.distributed.object_collectives import (
    gather_from_ranks,
    get_rank,
    get_world_size,
    run_on_rank0,
)
from trainers.planning.fake import fake_process_group
from trainers.storage.filesystem import StoreError


def fail(error: Exception) -> Any:
    raise error


def test_without_a_process_group_there_is_one_rank() -> None:
    assert (get_rank(), get_world_size()) == (0, 1)
    assert run_on_rank0(lambda: 7) == 7 and gather_from_ranks(lambda: 7) == [7]
    with fake_process_group(5, 3):
        assert (get_rank(), get_world_size()) == (3, 5)


@pytest.mark.parametrize("error", [OSError("disk"), StoreError("bucket"), ValueError("mistake")])
def test_an_error_of_a_single_rank_is_raised_as_it_is(error: Exception) -> None:
    for run in (run_on_rank0, gather_from_ranks):
        with pytest.raises(type(error)) as raised:
            run(lambda: fail(error))
        assert raised.value is error


@pytest.mark.multiprocess
def test_two_ranks_share_values_and_errors(tmp_path: Path) -> None:
    spawn_ranks(_share, (tmp_path,), nprocs=2)


def _share(rank: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    ran: list[int] = []
    assert run_on_rank0(lambda: ran.append(rank) or {"rank": rank}) == {"rank": 0}
    assert ran == ([0] if rank == 0 else []), "on rank 0 alone"
    assert run_on_rank0(lambda: None) is None
    assert gather_from_ranks(lambda: rank * 10) == ([0, 10] if rank == 0 else [])
    for error in (OSError("full disk"), StoreError("full disk")):
        with pytest.raises(OSError, match=r"^rank 0: full disk$"):
            run_on_rank0(lambda error=error: fail(error))
    for broken in (0, 1):
        with pytest.raises(OSError, match=rf"^rank {broken}: full disk$"):
            gather_from_ranks(
                lambda broken=broken: fail(OSError("full disk")) if rank == broken else 0
            )
    dist.destroy_process_group()
