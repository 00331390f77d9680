"""An OpenVINO model whose linear layers compute in int8.

OpenVINO is told so in its own way: inputs pass through a FakeQuantize and weights are int8 times a
scale, of which it makes int8 products. Their inputs are rounded at one scale for all texts, so that
an answer does not depend on what is computed beside it. All else computes in what the engine is
opened with. Knows no tasks, and no measure of what is good enough.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from serving.engine.backends.lazy_import import library
from serving.optimize import export
from serving.optimize.smoothquant import INPUT_LEVELS, Product, Rounding


def rounded(network: nn.Module, products: Mapping[str, Product]) -> Any:
    """The `openvino.Model` of a network with the layers `products` in int8."""
    library("openvino")
    ops = library("openvino.opset13")
    model = export.to_openvino(network)
    inputs: dict[tuple[str, int], Any] = {}  # rounded, once for all layers that share them
    for node in list(model.get_ops()):
        product = products.get(_layer_of(node))
        if product is None:
            continue
        tensor = node.input_value(0)
        key = (tensor.get_node().get_friendly_name(), tensor.get_index())
        if key not in inputs:
            inputs[key] = _rounded(ops, tensor, product.rounding)
        weight = ops.convert(ops.constant(np.ascontiguousarray(product.levels.T)), np.float32)
        scaled = ops.multiply(weight, ops.constant(product.scale[:, None]))
        users = node.output(0).get_target_inputs()
        corrected = ops.add(node.output(0), ops.constant(product.bias[None, None]))
        for user in users:
            user.replace_source_output(corrected.output(0))
        node.input(0).replace_source_output(inputs[key].output(0))
        node.input(1).replace_source_output(scaled.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _layer_of(node: Any) -> str:
    """The name in the network of the linear layer whose product a node is; "" for other nodes."""
    if node.get_type_name() != "MatMul":
        return ""
    name: str = node.get_friendly_name()
    return name.removeprefix("__module.").split("/")[0]


def _rounded(ops: Any, tensor: Any, rounding: Rounding) -> Any:
    """The inputs of a layer as whole numbers times a scale."""
    moved = ops.subtract(tensor, ops.constant(rounding.shift[None, None]))
    smooth = ops.multiply(moved, ops.constant(rounding.factor[None, None]))
    ends = [np.float32((end - rounding.zero) * rounding.scale) for end in (0, INPUT_LEVELS)]
    low, high = map(ops.constant, ends)
    return ops.fake_quantize(smooth, low, high, low, high, INPUT_LEVELS + 1)
