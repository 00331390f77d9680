"""The linear layers of a network in int8, and which of them can least afford it.

An engine takes them all, or leaves those that hurt most as they are; how many, whoever compares the
engines decides. Knows no graph, no labels, and no measure of what is good enough.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from serving.engine.packed import Packed
from serving.optimize import gptq, layer_sensitivity
from serving.optimize.calibration import inputs_of
from serving.optimize.smoothquant import Product

# Shares of the linear layers that stay as they are, the most sensitive first; in this order.
SHARES = (0.0, 0.03, 0.06, 0.11, 0.17, 0.22, 0.33, 0.5)
NUM_RANKING = 16  # rows that the sensitivity of layers is measured on
HEADS = ("classifier", "pooler", "predictions", "lm_head")  # small, and nearest to the answer


@dataclass(frozen=True)
class Int8:
    """products: by the name of a layer in the network, the most sensitive first."""

    products: dict[str, Product]

    @classmethod
    def of(cls, network: nn.Module, batches: Sequence[Packed], num_levels: int) -> "Int8":
        """Calibrated on `batches`. num_levels: of weights on either side of 0."""
        names = [
            name
            for name, each in network.named_modules()
            if type(each) is nn.Linear and not any(head in name for head in HEADS)
        ]
        found: dict[str, Product] = {}
        for sharing, seen in inputs_of(network, names, batches):
            weights = [_weight(network, name) for name in sharing]
            made = gptq.products(weights, seen, num_levels)
            found.update(zip(sharing, made, strict=True))
        ranked = layer_sensitivity.ranked(network, batches[:NUM_RANKING], found)
        return cls({name: found[name] for name in ranked})

    def ways(self) -> Iterator[tuple[str, dict[str, Product]]]:
        """From all of the layers to half of them: a title, and the products."""
        names = list(self.products)
        for count in dict.fromkeys(round(share * len(names)) for share in SHARES):
            title = f"{count} of {len(names)} layers left as they are"
            yield title, {name: self.products[name] for name in names[count:]}


def _weight(network: nn.Module, name: str) -> np.ndarray:
    """[channels, outputs] of a linear layer."""
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    weight: np.ndarray = layer.weight.detach().numpy().T
    return weight
