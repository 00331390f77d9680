"""Which linear layers a network can least afford in int8, by trying each alone.

Knows no graph and no tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.packed import Packed
from serving.optimize.smoothquant import Product


def ranked(
    network: nn.Module, batches: Sequence[Packed], products: Mapping[str, Product]
) -> list[str]:
    """The layers of `products`, the most sensitive first: those that alone in int8 move the outputs
    furthest, in the mean square.
    """
    moved = {}

    def outputs() -> list[Tensor]:
        arrays = ((map(torch.from_numpy, batch.arrays), batch.spans) for batch in batches)
        return [network(*tensors, spans=spans) for tensors, spans in arrays]

    with torch.inference_mode():
        exact = outputs()
        for name, product in products.items():
            hook = network.get_submodule(name).register_forward_hook(_rounded(product))
            rounded = outputs()
            hook.remove()
            moved[name] = sum(
                float((there - here).square().mean())
                for there, here in zip(exact, rounded, strict=True)
            )
    return sorted(moved, key=lambda name: -moved[name])


def _rounded(product: Product) -> Any:
    """A hook that gives what a linear layer would in int8."""
    weight = torch.from_numpy(product.levels * product.scale)
    bias = torch.from_numpy(product.bias)

    def compute(linear: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        rows = torch.from_numpy(product.rounding.inputs(inputs[0].numpy()))
        outputs = rows @ weight + bias
        return outputs if linear.bias is None else outputs + linear.bias

    return compute
