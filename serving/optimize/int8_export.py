"""Write int8 linear layers into the graphs of ONNX Runtime and of OpenVINO.

Inputs are quantized at one scale for all texts, so that an answer does not depend on what is
computed beside it. Attention, norms and activations stay in floating point.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from serving.engine.backends.backend import import_optional
from serving.engine.backends.onnx import FILE
from serving.optimize.export import convert_to_openvino
from serving.optimize.smoothquant import INPUT_LEVELS, ActivationQuantizer, QuantizedLinear

CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


def quantize_openvino(network: nn.Module, layers: Mapping[str, QuantizedLinear]) -> Any:
    """Return the `openvino.Model` of a network with `layers` in int8.

    OpenVINO makes an int8 product of a FakeQuantize and of int8 weights times a scale.
    """
    import_optional("openvino")
    ops = import_optional("openvino.opset13")
    model = convert_to_openvino(network)
    quantized: dict[tuple[str, int], Any] = {}  # inputs, once for all layers that share them
    for node in list(model.get_ops()):
        layer = layers.get(_openvino_layer_name(node))
        if layer is None:
            continue
        tensor = node.input_value(0)
        key = (tensor.get_node().get_friendly_name(), tensor.get_index())
        if key not in quantized:
            quantized[key] = _fake_quantize(ops, tensor, layer.quantizer)
        weight = ops.convert(ops.constant(np.ascontiguousarray(layer.levels.T)), np.float32)
        scaled = ops.multiply(weight, ops.constant(layer.scale[:, None]))
        users = node.output(0).get_target_inputs()
        corrected = ops.add(node.output(0), ops.constant(layer.bias[None, None]))
        for user in users:
            user.replace_source_output(corrected.output(0))
        node.input(0).replace_source_output(quantized[key].output(0))
        node.input(1).replace_source_output(scaled.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _openvino_layer_name(node: Any) -> str:
    """Return the network's name of the linear layer that a node computes; "" for other nodes."""
    if node.get_type_name() != "MatMul":
        return ""
    name: str = node.get_friendly_name()
    return name.removeprefix("__module.").split("/")[0]


def _fake_quantize(ops: Any, tensor: Any, quantizer: ActivationQuantizer) -> Any:
    shifted = ops.subtract(tensor, ops.constant(quantizer.shift[None, None]))
    smooth = ops.multiply(shifted, ops.constant(quantizer.factor[None, None]))
    ends = [np.float32((end - quantizer.zero_point) * quantizer.scale) for end in (0, INPUT_LEVELS)]
    low, high = map(ops.constant, ends)
    return ops.fake_quantize(smooth, low, high, low, high, INPUT_LEVELS + 1)


def quantize_onnx(fp32: Path, network: nn.Module, layers: Mapping[str, QuantizedLinear]) -> Any:
    """Return the `onnx.ModelProto` of a network with `layers` in int8.

    fp32: the directory of the exported network.
    """
    model = import_optional("onnx").load(str(fp32 / FILE))
    _OnnxRewriter(model, _onnx_layer_names(model, network), layers).rewrite()
    return model


def _onnx_layer_names(model: Any, network: nn.Module) -> dict[str, str]:
    """Return the network's name of each linear layer, by the tensor that its product outputs."""
    constants = {each.name: each for each in model.graph.initializer}
    # The exporter does not keep the network's names: layers are recognized by their weights.
    names = {
        _weight_digest(each.weight.detach().numpy().T): name
        for name, each in network.named_modules()
        if isinstance(each, nn.Linear)
    }
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            weight = import_optional("onnx").numpy_helper.to_array(constants[node.input[1]])
            name = names.get(_weight_digest(weight))
            if name is not None:
                found[node.output[0]] = name
    return found


class _OnnxRewriter:
    """Replaces linear layers of a graph in place. names: of layers, by their output tensor."""

    def __init__(
        self, model: Any, names: Mapping[str, str], layers: Mapping[str, QuantizedLinear]
    ) -> None:
        onnx = import_optional("onnx")
        self._helper, self._numpy_helper = onnx.helper, onnx.numpy_helper
        self._model, self._layers = model, layers
        self._names = {tensor: name for tensor, name in names.items() if name in layers}
        self._old = {each.name: each for each in model.graph.initializer}
        self._new: list[Any] = []  # constants
        self._quantized_inputs: set[str] = set()

    def rewrite(self) -> None:
        graph = self._model.graph
        biases = {
            argument: (node, other)
            for node in graph.node
            if node.op_type == "Add"
            for argument, other in (node.input, node.input[::-1])
            if other in self._old
        }
        nodes, folded = [], set()  # outputs of the additions that become part of a product
        for node in graph.node:
            name = self._names.get(node.output[0])
            if name is None:
                nodes.append(node)
                continue
            add, bias = biases.get(node.output[0], (None, ""))
            nodes += self._int8_product(name, node, add, bias)
            folded |= set() if add is None else {add.output[0]}
        kept = [node for node in nodes if node.op_type != "Add" or node.output[0] not in folded]
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(self._new)
        self._model.opset_import.append(self._helper.make_opsetid(CONTRIB, 1))
        _drop_unused_constants(graph)

    def _int8_product(self, name: str, node: Any, add: Any, bias: str) -> list[Any]:
        """Return the nodes that replace a product, and the addition of its bias."""
        tensor, layer = node.input[0], self._layers[name]
        total_bias = layer.bias
        if bias:
            total_bias = total_bias + self._numpy_helper.to_array(self._old[bias])
        arguments = [
            f"{tensor}.rounded",
            self._add_constant(f"{name}.int8.weight", layer.levels),
            f"{tensor}.scale",
            self._add_constant(f"{name}.int8.scale", layer.scale),
            f"{tensor}.zero",
            "",
            self._add_constant(f"{name}.int8.bias", total_bias),
        ]
        output = node.output[0] if add is None else add.output[0]
        product = self._helper.make_node(
            "MatMulIntegerToFloat", arguments, [output], domain=CONTRIB
        )
        return [*self._quantize_inputs(tensor, layer.quantizer), product]

    def _quantize_inputs(self, tensor: str, quantizer: ActivationQuantizer) -> list[Any]:
        """Return the nodes that quantize the inputs of a layer, once for all that share them."""
        if tensor in self._quantized_inputs:
            return []
        self._quantized_inputs.add(tensor)
        factor = self._add_constant(f"{tensor}.factor", quantizer.factor)
        scale = self._add_constant(f"{tensor}.scale", np.array(quantizer.scale, dtype=np.float32))
        zero = self._add_constant(f"{tensor}.zero", np.array(quantizer.zero_point, dtype=np.uint8))
        shift = self._add_constant(f"{tensor}.shift", quantizer.shift)
        shifted, smooth, levels = (f"{tensor}.{n}" for n in ("moved", "smooth", "rounded"))
        return [
            self._helper.make_node("Sub", [tensor, shift], [shifted]),
            self._helper.make_node("Mul", [shifted, factor], [smooth]),
            self._helper.make_node("QuantizeLinear", [smooth, scale, zero], [levels]),
        ]

    def _add_constant(self, name: str, values: np.ndarray) -> str:
        self._new.append(self._numpy_helper.from_array(values, name))
        return name


def _weight_digest(weight: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(weight).tobytes()).digest()


def _drop_unused_constants(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
