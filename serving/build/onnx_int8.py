"""An ONNX graph whose linear layers compute in int8, calibrated on texts.

Every product of a tensor with constant weights becomes ONNX Runtime's own int8 product, its inputs
rounded at one scale for all texts, so that an answer does not depend on what is computed beside it.
Attention, norms and activations stay in fp32. Knows no tasks, and no measure of what is good
enough.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from serving.build.rounding import Rounding, Seen, best
from serving.engine.backends.libraries import library
from serving.engine.backends.onnx import FILE
from serving.engine.packed import INPUTS, Packed

NUM_TOKENS = 1500  # of the calibration texts, that roundings are chosen by
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


class Graph:
    """An ONNX file of `export.save_onnx`, and its linear layers by their names in the network."""

    def __init__(self, directory: Path, network: nn.Module) -> None:
        onnx = library("onnx")
        numpy_helper = onnx.numpy_helper
        self.model: Any = onnx.load(str(directory / FILE))
        held = {each.name: each for each in self.model.graph.initializer}
        # The exporter's names of nodes are not the network's; the weights are.
        names = {
            _identity(each.weight.detach().numpy().T): name
            for name, each in network.named_modules()
            if isinstance(each, nn.Linear)
        }
        self.layers: dict[str, Any] = {}
        self.weights: dict[str, np.ndarray] = {}
        for node in self.model.graph.node:
            if node.op_type == "MatMul" and node.input[1] in held:
                weight = numpy_helper.to_array(held[node.input[1]])
                name = names.get(_identity(weight))
                if name is not None:
                    self.layers[name], self.weights[name] = node, weight

    def roundings(self, batches: Sequence[Packed]) -> dict[str, Rounding]:
        """The best rounding of each layer's inputs; layers that share an input share it."""
        sharing: dict[str, list[str]] = {}
        for name, node in self.layers.items():
            sharing.setdefault(node.input[0], []).append(name)
        self._inputs = self._seen(list(sharing), batches)
        found = {}
        for tensor, names in sharing.items():
            weights = [self.weights[name] for name in names]
            found.update(dict.fromkeys(names, best(self._inputs[tensor], weights)))
        return found

    def bias(self, name: str, rounding: Rounding) -> np.ndarray:
        """What makes up for the mean that rounding adds to a layer's outputs: [outputs]."""
        seen = self._inputs[self.layers[name].input[0]]
        mean: np.ndarray = rounding.error(seen.sample, self.weights[name]).mean(axis=0)
        return -mean.astype(np.float32)

    def _seen(self, tensors: list[str], batches: Sequence[Packed]) -> dict[str, Seen]:
        """What the `tensors` hold on `batches`."""
        onnxruntime, helper = library("onnxruntime"), library("onnx").helper
        watched = type(self.model)()
        watched.CopyFrom(self.model)
        watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = [each.name for each in session.get_inputs()]
        found: dict[str, list[Seen]] = {name: [] for name in tensors}
        each = max(2, NUM_TOKENS // len(batches))
        for batch in batches:
            values = dict(zip(INPUTS, batch.arrays, strict=True))
            arrays = session.run(tensors, {name: values[name] for name in inputs})
            for name, array in zip(tensors, arrays, strict=True):
                found[name].append(Seen.of(array.reshape(-1, array.shape[-1]), each))
        return {name: Seen.joined(parts) for name, parts in found.items()}

    def rounded(self, roundings: Mapping[str, Rounding], kept: Collection[str]) -> Any:
        """The graph in int8 but for the layers `kept`, an `onnx.ModelProto`."""
        model = type(self.model)()
        model.CopyFrom(self.model)
        names = {self.layers[name].output[0]: name for name in roundings if name not in kept}
        _Rewriting(model, self, names, roundings).run()
        return model


class _Rewriting:
    """Replaces the linear layers of a graph in place."""

    def __init__(
        self,
        model: Any,
        graph: Graph,
        names: Mapping[str, str],
        roundings: Mapping[str, Rounding],
    ) -> None:
        """names: of the layers to replace, by the tensor they give."""
        self._model, self._graph = model, graph
        self._names, self._roundings = names, roundings
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
        tensor, rounding = node.input[0], self._roundings[name]
        weight, scale = rounding.weight(self._graph.weights[name])
        correction = self._graph.bias(name, rounding)
        if bias:
            correction = correction + numpy_helper.to_array(self._values[bias])
        arguments = [
            f"{tensor}.rounded",
            self._constant(f"{name}.int8.weight", weight),
            f"{tensor}.scale",
            self._constant(f"{name}.int8.scale", scale),
            f"{tensor}.zero",
            "",
            self._constant(f"{name}.int8.bias", correction),
        ]
        output = node.output[0] if add is None else add.output[0]
        product = helper.make_node("MatMulIntegerToFloat", arguments, [output], domain=CONTRIB)
        return [*self._inputs(tensor, rounding), product]

    def _inputs(self, tensor: str, rounding: Rounding) -> list[Any]:
        """The nodes that round the inputs of a layer, once for all that share them."""
        helper = library("onnx").helper
        if tensor in self._rounded_inputs:
            return []
        self._rounded_inputs.add(tensor)
        factor = self._constant(f"{tensor}.factor", rounding.factor)
        scale = self._constant(f"{tensor}.scale", np.array(rounding.scale, dtype=np.float32))
        zero = self._constant(f"{tensor}.zero", np.array(rounding.zero, dtype=np.uint8))
        smooth = f"{tensor}.smooth"
        return [
            helper.make_node("Mul", [tensor, factor], [smooth]),
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
