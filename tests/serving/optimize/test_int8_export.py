"""Int8 layers in the graphs of both runtimes: they compute what `QuantizedLinear` computes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serving.engine.backends.backend import Backend
from serving.engine.backends.onnx import OnnxBackend
from serving.engine.backends.openvino import OpenVinoBackend
from serving.optimize.export import export_onnx, save_onnx_model, save_openvino
from serving.optimize.int8_export import quantize_onnx, quantize_openvino
from serving.optimize.smoothquant import ActivationQuantizer, QuantizedLinear
from tests.support.engine_builds import needs_graphs
from trainers.models.packed import PackedBatch

pytestmark = needs_graphs

PACKED = PackedBatch.from_rows(
    [np.array([3, 1, 4]), np.array([1, 5]), np.array([9])],
    [np.arange(3), np.arange(2), np.arange(1)],
)


class Gated(nn.Module):
    """Two layers that share their inputs, and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.Embedding(16, 8)
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 6)
        self.last = nn.Linear(6, 3, bias=False)

    def forward(
        self,
        ids: Tensor,
        texts: Tensor,
        positions: Tensor,
        reads: Tensor,
        grid: Tensor,
        owners: Tensor,
        places: Tensor,
    ) -> Tensor:
        hidden = self.vectors(ids[reads])[None]
        return self.last(torch.relu(self.left(hidden)) * torch.tanh(self.right(hidden)))[0]


def quantized_layers() -> dict[str, QuantizedLinear]:
    """Layers in int8 that differ from those of the network; some of their inputs are clipped."""
    rng = np.random.default_rng(1)

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def layer(quantizer: ActivationQuantizer, outputs: int) -> QuantizedLinear:
        levels = rng.integers(-63, 64, (len(quantizer.shift), outputs)).astype(np.int8)
        scale = rng.uniform(0.005, 0.02, outputs).astype(np.float32)
        return QuantizedLinear(quantizer, levels, scale, numbers(outputs))

    shared = ActivationQuantizer(0.3 * numbers(8), 1 + np.abs(numbers(8)), 0.02, 100)
    last = ActivationQuantizer(0.3 * numbers(6), 1 + np.abs(numbers(6)), 0.01, 30)
    return {"left": layer(shared, 6), "right": layer(shared, 6), "last": layer(last, 3)}


def expected(network: Gated, layers: Mapping[str, QuantizedLinear]) -> np.ndarray:
    def apply(name: str, inputs: np.ndarray) -> np.ndarray:
        linear = network.get_submodule(name)
        if name not in layers:
            return linear(torch.from_numpy(inputs)).detach().numpy()
        bias = 0 if linear.bias is None else linear.bias.detach().numpy()
        return layers[name].compute_outputs(inputs) + bias

    hidden = network.vectors.weight.detach().numpy()[PACKED.ids[PACKED.reads]]
    gated = np.maximum(apply("left", hidden), 0) * np.tanh(apply("right", hidden))
    return apply("last", gated.astype(np.float32))


def build_openvino(
    place: Path, network: nn.Module, layers: Mapping[str, QuantizedLinear]
) -> tuple[Any, Backend]:
    model = quantize_openvino(network, layers)
    save_openvino(model, place)
    return model, OpenVinoBackend(place, "openvino int8", 1)


def build_onnx(
    place: Path, network: nn.Module, layers: Mapping[str, QuantizedLinear]
) -> tuple[Any, Backend]:
    export_onnx(network, place)
    model = quantize_onnx(place, network, layers)
    save_onnx_model(model, place)
    return model, OnnxBackend(place, "onnxruntime int8", 1)


@pytest.mark.parametrize("build", [build_openvino, build_onnx])
@pytest.mark.parametrize("names", [("left", "right", "last"), ("left",), ("last",)], ids=" ".join)
def test_a_graph_computes_its_layers_in_int8_and_the_others_as_they_were(
    tmp_path: Path, build: Callable[..., tuple[Any, Backend]], names: tuple[str, ...]
) -> None:
    network = Gated().eval()
    layers = {name: layer for name, layer in quantized_layers().items() if name in names}
    wanted = expected(network, layers)
    assert not np.allclose(wanted, expected(network, {}), atol=0.1)
    _, backend = build(tmp_path, network, layers)
    np.testing.assert_allclose(backend.run(PACKED), wanted, atol=1e-5)


def test_layers_that_share_inputs_quantize_them_once(tmp_path: Path) -> None:
    network, layers = Gated().eval(), quantized_layers()
    for name in ("onnx", "openvino"):
        (tmp_path / name).mkdir()
    onnx, _ = build_onnx(tmp_path / "onnx", network, layers)
    assert [node.op_type for node in onnx.graph.node].count("QuantizeLinear") == 2
    openvino, _ = build_openvino(tmp_path / "openvino", network, layers)
    kinds = [node.get_type_name() for node in openvino.get_ops()]
    assert kinds.count("FakeQuantize") == 2


def test_the_weights_that_int8_replaces_are_not_kept(tmp_path: Path) -> None:
    network, layers = Gated().eval(), quantized_layers()
    model, _ = build_onnx(tmp_path, network, layers)
    used = {name for node in model.graph.node for name in node.input}
    assert {each.name for each in model.graph.initializer} <= used
    weights = [each for each in model.graph.initializer if tuple(each.dims) == (8, 6)]
    assert [each.name for each in weights] == ["left.int8.weight", "right.int8.weight"]
    assert [len(each.raw_data) for each in weights] == [8 * 6] * 2
