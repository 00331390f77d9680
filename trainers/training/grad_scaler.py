"""Loss scaling: what lets gradients survive fp16, whose smallest numbers are too large for them.

The loss is multiplied by a power of two before backward and gradients are divided by it after, so
nothing but their range changes (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2). Where the
gradient of a global batch overflows all the same, its step is left out and the scale is halved.
That is decided by the global norm, which every rank knows alike. Knows no loop.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from trainers.distributed.dtensor import to_local

DOUBLED_AFTER = 2000  # steps in a row without overflow


@dataclass(frozen=True)
class Scale:
    """The factor of the loss, a power of two, and the steps in a row that it has served."""

    factor: float = 2.0**16
    served: int = 0

    def after(self, overflowed: bool) -> "Scale":
        """The scale of the next step."""
        if overflowed:
            return Scale(self.factor / 2)
        if self.served + 1 == DOUBLED_AFTER:
            return Scale(self.factor * 2)
        return Scale(self.factor, self.served + 1)

    @property
    def exhausted(self) -> bool:
        """Whether gradients overflow even when the loss is not scaled up."""
        return self.factor < 1


def unscale(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Divide the gradients of `parameters` by `factor`, in place and exactly."""
    gradients = {id(p): to_local(p.grad) for p in parameters if p.grad is not None}
    torch._foreach_mul_(list(gradients.values()), 1.0 / factor)
