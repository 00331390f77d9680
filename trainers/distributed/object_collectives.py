"""Collectives of plain Python values. Without a process group there is one rank.

An OSError or StoreError on one rank is raised on all of them, so that none waits in vain.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from trainers.storage.filesystem import StoreError

Value = TypeVar("Value")


def get_rank() -> int:
    """Return the global rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def run_on_rank0(task: Callable[[], Value]) -> Value:
    """Run `task` on rank 0 and broadcast the result. Collective: call it on every rank."""
    if get_world_size() == 1:
        return task()
    outcome: list[tuple[Value | None, str | None]] = [(None, None)]
    if get_rank() == 0:
        outcome = [_try_task(task)]
    dist.broadcast_object_list(outcome, src=0)
    value, error = outcome[0]
    if error is not None:
        raise OSError(error)
    return value  # type: ignore[return-value]


def gather_from_ranks(task: Callable[[], Value]) -> list[Value]:
    """Run `task` on every rank; return the results on rank 0, [] on the others. Collective."""
    size = get_world_size()
    if size == 1:
        return [task()]
    outcomes: list[tuple[Value | None, str | None]] = [(None, None)] * size
    dist.gather_object(_try_task(task), outcomes if get_rank() == 0 else None, dst=0)
    errors = run_on_rank0(lambda: [error for _, error in outcomes if error is not None])
    if errors:
        raise OSError(errors[0])
    return [value for value, _ in outcomes] if get_rank() == 0 else []  # type: ignore[misc]


def _try_task(task: Callable[[], Value]) -> tuple[Value | None, str | None]:
    try:
        return task(), None
    except (OSError, StoreError) as error:
        return None, f"rank {get_rank()}: {error}"
