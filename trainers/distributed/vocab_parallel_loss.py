"""Cross-entropy over a vocabulary that tensor-parallel ranks share.

Each rank has the logits of its part of the vocabulary; three numbers a token are exchanged, the
logits never. With one rank it is plain cross-entropy. Knows no model.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabularyPart:
    """The tokens from `offset` on that this rank has logits of. group: of all such ranks."""

    offset: int = 0
    group: Any = None


def token_losses(logits: Tensor, targets: Tensor, part: VocabularyPart) -> tuple[Tensor, Tensor]:
    """(losses [n] fp32, whether the likeliest token is the right one [n] bool).

    logits: [n, part of the vocabulary]. targets: [n] int64 in the whole vocabulary. Both results
    are the same on all ranks of the group.
    """
    losses: Tensor = _CrossEntropy.apply(logits.float(), targets, part)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        of_part, best = logits.float().max(dim=1)
        overall = _reduced(of_part.clone(), dist.ReduceOp.MAX, part)
        # Of equal maxima the lowest token is said, as argmax does on one rank.
        said = torch.where(of_part == overall, best + part.offset, torch.iinfo(torch.int64).max)
        said = _reduced(said, dist.ReduceOp.MIN, part)
    return losses, said == targets


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, part: VocabularyPart) -> Tensor:
        highest = _reduced(logits.max(dim=1).values, dist.ReduceOp.MAX, part)
        exponents = (logits - highest[:, None]).exp_()
        sums = _reduced(exponents.sum(dim=1), dist.ReduceOp.SUM, part)
        here = targets - part.offset
        held = (here >= 0) & (here < logits.shape[1])
        here = here.clamp(0, logits.shape[1] - 1)
        of_target = logits.gather(1, here[:, None])[:, 0].masked_fill(~held, 0.0)
        of_target = _reduced(of_target, dist.ReduceOp.SUM, part)
        ctx.save_for_backward(exponents.div_(sums[:, None]), here, held)
        return sums.log() + highest - of_target

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        probabilities, here, held = ctx.saved_tensors
        of_logits = probabilities * gradient[:, None]
        of_logits.scatter_add_(1, here[:, None], -(gradient * held)[:, None])
        return of_logits, None, None


def _reduced(tensor: Tensor, operation: Any, part: VocabularyPart) -> Tensor:
    if part.group is not None:
        dist.all_reduce(tensor, operation, group=part.group)
    return tensor
