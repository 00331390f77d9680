"""Quantize the linear layers of a network to int8, and rank them by what that costs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serving.optimize import gptq
from serving.optimize.calibration import collect_activation_stats
from serving.optimize.smoothquant import QuantizedLinear
from trainers.models.packed import PackedBatch

# Shares of the linear layers that stay in floating point, the most sensitive first; in this order.
SHARES = (0.0, 0.03, 0.06, 0.11, 0.17, 0.22, 0.33, 0.5)
NUM_RANKING = 16  # batches that the sensitivity of layers is measured on
HEADS = ("classifier", "pooler", "predictions", "lm_head")  # small, and nearest to the output


def quantize_linear_layers(
    network: nn.Module, batches: Sequence[PackedBatch], num_levels: int
) -> dict[str, QuantizedLinear]:
    """Quantize every linear layer but the heads, calibrated on `batches`.

    num_levels: of weights on either side of 0. Returns layers by name, the most sensitive first.
    """
    linears = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
        and type(module) is nn.Linear
        and not any(head in name for head in HEADS)
    }
    layers: dict[str, QuantizedLinear] = {}
    for sharing, stats in collect_activation_stats(network, list(linears), batches):
        weights = [linears[name].weight.detach().numpy().T for name in sharing]
        quantized = gptq.quantize_layers(weights, stats, num_levels)
        layers.update(zip(sharing, quantized, strict=True))
    ranked = rank_by_sensitivity(network, batches[:NUM_RANKING], layers)
    return {name: layers[name] for name in ranked}


def layer_subsets(
    layers: Mapping[str, QuantizedLinear],
) -> Iterator[tuple[str, dict[str, QuantizedLinear]]]:
    """Yield a title and ever fewer of the `layers`, from all of them to half of them."""
    names = list(layers)
    for count in dict.fromkeys(round(share * len(names)) for share in SHARES):
        title = f"{count} of {len(names)} layers left as they are"
        yield title, {name: layers[name] for name in names[count:]}


def rank_by_sensitivity(
    network: nn.Module, batches: Sequence[PackedBatch], layers: Mapping[str, QuantizedLinear]
) -> list[str]:
    """Return the names of `layers`, the most sensitive first.

    Sensitivity is the mean square change of the network's outputs with that layer alone in int8.
    """

    def compute_outputs() -> list[Tensor]:
        return [
            network(*map(torch.from_numpy, batch.arrays), lengths=batch.lengths)
            for batch in batches
        ]

    sensitivity = {}
    with torch.inference_mode():
        exact = compute_outputs()
        for name, layer in layers.items():
            hook = network.get_submodule(name).register_forward_hook(_int8_hook(layer))
            quantized = compute_outputs()
            hook.remove()
            sensitivity[name] = sum(
                float((a - b).square().mean()) for a, b in zip(exact, quantized, strict=True)
            )
    return sorted(sensitivity, key=lambda name: -sensitivity[name])


def _int8_hook(layer: QuantizedLinear) -> Any:
    """Return a forward hook that replaces a linear layer's output by its int8 output."""
    weight = torch.from_numpy(layer.levels * layer.scale)
    bias = torch.from_numpy(layer.bias)

    def hook(linear: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        rows = torch.from_numpy(layer.quantizer.fake_quantize(inputs[0].numpy()))
        outputs = rows @ weight + bias
        return outputs if linear.bias is None else outputs + linear.bias

    return hook
