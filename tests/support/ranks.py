"""Ranks of a test as processes, each forked from one server that has imported what all need.

To import it anew in every rank would take most of the time of these tests.
"""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

IMPORTED = [
    "torch.distributed.tensor",
    "transformers",
    "trainers.runtime.worker",
    "trainers.planning.simulator",
]


def spawn_ranks(function: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """Call `function(rank, *args)` in as many processes; raise what the first to fail raised."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    passed = (function, dict(os.environ), *args)  # the server's environment is that of its start
    torch.multiprocessing.start_processes(_call_rank, passed, nprocs, start_method="forkserver")


def _call_rank(
    rank: int, function: Callable[..., None], environment: dict[str, str], *args: Any
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(rank, *args)
