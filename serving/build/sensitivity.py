"""Which linear layers a network can least afford in int8, by trying each alone.

Knows no graph and no tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.build.rounding import Rounding
from serving.engine.packed import Packed


def ranked(
    network: nn.Module, batches: Sequence[Packed], roundings: Mapping[str, Rounding]
) -> list[str]:
    """The linear layers of `roundings`, the most sensitive first: those whose rounding alone moves
    the outputs furthest, in the mean square.
    """
    moved = {}
    tensors = [tuple(map(torch.from_numpy, batch.arrays)) for batch in batches]
    with torch.inference_mode():
        exact = [network(*inputs) for inputs in tensors]
        for name, rounding in roundings.items():
            hook = network.get_submodule(name).register_forward_hook(_rounded(rounding))
            rounded = [network(*inputs) for inputs in tensors]
            hook.remove()
            moved[name] = sum(
                float((there - here).square().mean())
                for there, here in zip(exact, rounded, strict=True)
            )
    return sorted(moved, key=lambda name: -moved[name])


def _rounded(rounding: Rounding) -> Any:
    """A hook that gives what a linear layer would in int8."""
    weight: Tensor | None = None

    def compute(linear: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        nonlocal weight
        if weight is None:
            levels, scale = rounding.weight(linear.weight.detach().numpy().T)
            weight = torch.from_numpy(np.ascontiguousarray((levels * scale).T))
        values = torch.from_numpy(rounding.inputs(inputs[0].numpy()))
        return nn.functional.linear(values, weight, linear.bias)

    return compute
