"""Dynamic loss scaling, which keeps small gradients from underflowing in fp16.

The loss is multiplied by a power of two before backward and gradients are divided by it after
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.2). Where the gradient of a global batch
overflows, its step is skipped and the scale is halved. The global norm decides, as it is the same
on every rank; ranks with different shards could disagree about their local gradients.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from trainers.distributed.dtensor import to_local

GROWTH_INTERVAL = 2000  # steps in a row without overflow


@dataclass(frozen=True)
class LossScale:
    """The factor of the loss, a power of two, and for how many steps in a row it has served."""

    factor: float = 2.0**16
    served: int = 0

    def next_scale(self, overflowed: bool) -> "LossScale":
        """Return the scale of the next step."""
        if overflowed:
            return LossScale(self.factor / 2)
        if self.served + 1 == GROWTH_INTERVAL:
            return LossScale(self.factor * 2)
        return LossScale(self.factor, self.served + 1)

    @property
    def is_exhausted(self) -> bool:
        """Whether gradients overflow even when the loss is not scaled up."""
        return self.factor < 1


def unscale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Divide the gradients of `parameters` by `factor`, in place and exactly."""
    gradients = {id(p): to_local(p.grad) for p in parameters if p.grad is not None}
    if gradients:  # a frozen pipeline stage has none
        torch._foreach_mul_(list(gradients.values()), 1.0 / factor)
