"""An ONNX graph whose linear layers compute in int8.

Every such product of a tensor with constant weights becomes ONNX Runtime's own int8 product, its
inputs rounded at one scale for all texts, so that an answer does not depend on what is computed
beside it. Attention, norms and activations stay in fp32. Knows no tasks, and no measure of what is
good enough.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from serving.engine.backends.lazy_import import library
from serving.engine.backends.onnx import FILE
from serving.optimize.smoothquant import Product, Rounding

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


def rounded(fp32: Path, network: nn.Module, products: Mapping[str, Product]) -> Any:
    """The `onnx.ModelProto` of a network with the layers `products` in int8.

    fp32: the directory where `export.save_onnx` wrote the network.
    """
    model = library("onnx").load(str(fp32 / FILE))
    _Rewriting(model, _layers(model, network), products).run()
    return model


def _layers(model: Any, network: nn.Module) -> dict[str, str]:
    """The name of each linear layer in the network, by the tensor that its product gives."""
    held = {each.name: each for each in model.graph.initializer}
    # The exporter's names of nodes are not the network's; the weights are.
    names = {
        _identity(each.weight.detach().numpy().T): name
        for name, each in network.named_modules()
        if isinstance(each, nn.Linear)
    }
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            weight = library("onnx").numpy_helper.to_array(held[node.input[1]])
            name = names.get(_identity(weight))
            if name is not None:
                found[node.output[0]] = name
    return found


class _Rewriting:
    """Replaces linear layers of a graph in place. names: of layers, by the tensor they give."""

    def __init__(
        self, model: Any, names: Mapping[str, str], products: Mapping[str, Product]
    ) -> None:
        self._model, self._products = model, products
        self._names = {tensor: name for tensor, name in names.items() if name in products}
        self._constants: list[Any] = []
        self._rounded_inputs: set[str] = set()

    def run(self) -> None:
        helper = library("onnx").helper
        held = {each.name for each in self._model.graph.initializer}
        biases = {
            argument: (node, other)
            for node in self._model.graph.node
            if node.op_type == "Add"
            for argument, other in (node.input, node.input[::-1])
            if other in held
        }
        self._values = {each.name: each for each in self._model.graph.initializer}
        nodes, dropped = [], set()
        for node in self._model.graph.node:
            name = self._names.get(node.output[0])
            if name is None:
                nodes.append(node)
                continue
            add, bias = biases.get(node.output[0], (None, ""))
            nodes += self._product(name, node, add, bias)
            dropped |= set() if add is None else {add.output[0]}
        kept = [node for node in nodes if node.op_type != "Add" or node.output[0] not in dropped]
        del self._model.graph.node[:]
        self._model.graph.node.extend(kept)
        self._model.graph.initializer.extend(self._constants)
        self._model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        _drop_unused(self._model.graph)

    def _product(self, name: str, node: Any, add: Any, bias: str) -> list[Any]:
        """The nodes that stand in for a product, and for the addition of its bias."""
        helper, numpy_helper = library("onnx").helper, library("onnx").numpy_helper
        tensor, product = node.input[0], self._products[name]
        correction = product.bias
        if bias:
            correction = correction + numpy_helper.to_array(self._values[bias])
        arguments = [
            f"{tensor}.rounded",
            self._constant(f"{name}.int8.weight", product.levels),
            f"{tensor}.scale",
            self._constant(f"{name}.int8.scale", product.scale),
            f"{tensor}.zero",
            "",
            self._constant(f"{name}.int8.bias", correction),
        ]
        output = node.output[0] if add is None else add.output[0]
        times = helper.make_node("MatMulIntegerToFloat", arguments, [output], domain=CONTRIB)
        return [*self._inputs(tensor, product.rounding), times]

    def _inputs(self, tensor: str, rounding: Rounding) -> list[Any]:
        """The nodes that round the inputs of a layer, once for all that share them."""
        helper = library("onnx").helper
        if tensor in self._rounded_inputs:
            return []
        self._rounded_inputs.add(tensor)
        factor = self._constant(f"{tensor}.factor", rounding.factor)
        scale = self._constant(f"{tensor}.scale", np.array(rounding.scale, dtype=np.float32))
        zero = self._constant(f"{tensor}.zero", np.array(rounding.zero, dtype=np.uint8))
        moved, smooth = f"{tensor}.moved", f"{tensor}.smooth"
        shift = self._constant(f"{tensor}.shift", rounding.shift)
        return [
            helper.make_node("Sub", [tensor, shift], [moved]),
            helper.make_node("Mul", [moved, factor], [smooth]),
            helper.make_node("QuantizeLinear", [smooth, scale, zero], [f"{tensor}.rounded"]),
        ]

    def _constant(self, name: str, values: np.ndarray) -> str:
        self._constants.append(library("onnx").numpy_helper.from_array(values, name))
        return name


def _identity(weight: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(weight).tobytes()).digest()


def _drop_unused(graph: Any) -> None:
    """Leave out the constants that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
