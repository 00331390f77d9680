"""What the ranks of a run tell each other in plain values. Without a process group: one rank.

An operating system's error on one rank, or a store's, is raised on all, so that none waits for it
in vain.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from trainers.storage.object_store import StoreError

Value = TypeVar("Value")


def rank() -> int:
    """This process among all of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def on_first(task: Callable[[], Value]) -> Value:
    """What `task` gives on rank 0, where alone it runs; every rank calls this, and waits for it."""
    if num_ranks() == 1:
        return task()
    told: list[tuple[Value | None, str | None]] = [(None, None)]
    if rank() == 0:
        told = [_outcome(task)]
    dist.broadcast_object_list(told, src=0)
    value, error = told[0]
    if error is not None:
        raise OSError(error)
    return value  # type: ignore[return-value]


def on_all(task: Callable[[], Value]) -> list[Value]:
    """On rank 0 what `task` gives on each rank, [] on the others; every rank calls this."""
    if num_ranks() == 1:
        return [task()]
    outcomes: list[tuple[Value | None, str | None]] = [(None, None)] * num_ranks()
    dist.gather_object(_outcome(task), outcomes if rank() == 0 else None, dst=0)
    failed = on_first(lambda: [error for _, error in outcomes if error is not None])
    if failed:
        raise OSError(failed[0])
    return [value for value, _ in outcomes] if rank() == 0 else []  # type: ignore[misc]


def _outcome(task: Callable[[], Value]) -> tuple[Value | None, str | None]:
    try:
        return task(), None
    except (OSError, StoreError) as error:
        return None, f"rank {rank()}: {error}"
