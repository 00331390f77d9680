"""Cross-entropy over a vocabulary that is sharded over tensor-parallel ranks.

Each rank has the logits of its shard of the vocabulary. Gathering them would move [n, vocabulary]
numbers; instead three numbers a token are all-reduced (Shoeybi et al. 2019, arXiv 1909.08053,
section 3): the largest logit, the sum of exponents, and the logit of the target.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabShard:
    """The tokens from `offset` on whose logits this rank has. group: of all ranks that share."""

    offset: int = 0
    group: Any = None


def token_losses(logits: Tensor, targets: Tensor, shard: VocabShard) -> tuple[Tensor, Tensor]:
    """Return (losses [n] fp32, whether the likeliest token is the target [n] bool).

    logits: [n, shard of the vocabulary]. targets: [n] int64 in the whole vocabulary. Both results
    are the same on all ranks of the group.
    """
    losses: Tensor = _VocabParallelCrossEntropy.apply(logits.float(), targets, shard)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        local_max, best = logits.float().max(dim=1)
        global_max = _all_reduce(local_max.clone(), dist.ReduceOp.MAX, shard)
        # Of equal maxima the lowest token wins, as in argmax on one rank.
        is_best = local_max == global_max
        predicted = torch.where(is_best, best + shard.offset, torch.iinfo(torch.int64).max)
        predicted = _all_reduce(predicted, dist.ReduceOp.MIN, shard)
    return losses, predicted == targets


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shard: VocabShard) -> Tensor:
        # The maximum must be the global one: exponents of all ranks add up to one denominator.
        highest = _all_reduce(logits.max(dim=1).values, dist.ReduceOp.MAX, shard)
        exponents = (logits - highest[:, None]).exp_()
        sums = _all_reduce(exponents.sum(dim=1), dist.ReduceOp.SUM, shard)
        # Only one rank has the target's logit; the others add zero.
        columns = targets - shard.offset
        is_local = (columns >= 0) & (columns < logits.shape[1])
        columns = columns.clamp(0, logits.shape[1] - 1)
        target_logits = logits.gather(1, columns[:, None])[:, 0].masked_fill(~is_local, 0.0)
        target_logits = _all_reduce(target_logits, dist.ReduceOp.SUM, shard)
        ctx.save_for_backward(exponents.div_(sums[:, None]), columns, is_local)
        return sums.log() + highest - target_logits

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # softmax - one_hot(target), of this rank's columns: nothing is exchanged.
        probabilities, columns, is_local = ctx.saved_tensors
        logits_gradient = probabilities * gradient[:, None]
        logits_gradient.scatter_add_(1, columns[:, None], -(gradient * is_local)[:, None])
        return logits_gradient, None, None


def _all_reduce(tensor: Tensor, operation: Any, shard: VocabShard) -> Tensor:
    if shard.group is not None:
        dist.all_reduce(tensor, operation, group=shard.group)
    return tensor
