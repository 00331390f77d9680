"""The mean of the weights of several checkpoints, read by any layout.

Averaging the last points of a run often generalises better than any of them (Izmailov et al. 2018,
arXiv 1803.05407). A mean is taken element by element, so every rank reads just its own blocks, and
the numbers are the same on any layout.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainers.checkpoint.checkpoint import Checkpoint, ShardedModel
from trainers.checkpoint.sharded_tensors import ShardedTensorReader
from trainers.distributed.dtensor import to_local


@dataclass(frozen=True)
class CheckpointAverage:
    """The mean of `checkpoints`, of one model."""

    checkpoints: tuple[Checkpoint, ...]

    def restore(self, model: ShardedModel) -> None:
        """Load this rank's part of the mean. Not collective.

        Raises CheckpointError where a checkpoint is of another model.
        """
        with ExitStack() as stack, torch.no_grad():
            readers = self._open_readers(stack)
            for name, parameter in model.named_parameters():
                shards = (reader.read_shard(name, parameter) for reader in readers)
                to_local(parameter).copy_(mean_of(shards))

    def iter_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole means by the names of their parameters, one at a time, on the CPU."""
        with ExitStack() as stack:
            readers = self._open_readers(stack)
            for name in readers[0].moment_kinds:
                yield name, mean_of(reader.read_tensor(name) for reader in readers)

    def _open_readers(self, stack: ExitStack[Any]) -> list[ShardedTensorReader]:
        return [
            stack.enter_context(ShardedTensorReader(each.directory, each.fetch))
            for each in self.checkpoints
        ]


def mean_of(tensors: Iterable[Tensor]) -> Tensor:
    """Return the mean of tensors of one shape, added up in fp64, in their dtype."""
    total, count, dtype = None, 0, torch.float32
    for tensor in tensors:
        total = tensor.double() if total is None else total.add_(tensor)
        count, dtype = count + 1, tensor.dtype
    assert total is not None, "a mean is of one tensor at least"
    return total.div_(count).to(dtype)
