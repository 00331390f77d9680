"""A network leaves torch: as a graph of OpenVINO or of ONNX, for any texts.

The graph is traced from the very modules that torch runs, so it too computes [CLS] alone in the
last layer of a classifier. Knows no texts, and nothing of speed or agreement.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.engine.backends import onnx, openvino
from serving.engine.backends.lazy_import import library
from serving.engine.packed import Packed
from trainers.models.config import quiet

OPSET = 18
# What is traced; neither the number of texts nor a length stays in the graph.
EXAMPLE = Packed.of([np.arange(5, 14), np.arange(5, 12)], [np.arange(9), np.arange(7)])


def to_openvino(network: nn.Module) -> Any:
    """The `openvino.Model` of a network, fp32."""
    module = library("openvino")
    with _tracing():
        return module.convert_model(network, example_input=_example())


def save_openvino(model: Any, directory: Path) -> None:
    """Write an `openvino.Model` as `OpenVinoBackend` reads it."""
    library("openvino").save_model(model, directory / openvino.FILE, compress_to_fp16=False)


def save_onnx(network: nn.Module, directory: Path) -> None:
    """Write a network, fp32, as `OnnxBackend` reads it."""
    inputs = list(EXAMPLE.for_graph)
    axes = {"reads": {0: "reads"}, "outputs": {0: "reads"}}
    axes |= {name: {0: "rows", 1: "width"} for name in ("grid", "owners")}
    with _tracing():
        # The tracing exporter needs no more than `onnx`, and follows shapes as OpenVINO's does.
        torch.onnx.export(
            network,
            _example(),
            str(directory / onnx.FILE),
            input_names=inputs,
            output_names=["outputs"],
            dynamic_axes={name: {0: "tokens"} for name in inputs} | axes,
            opset_version=OPSET,
            dynamo=False,
        )


def write_onnx(model: Any, directory: Path) -> None:
    """Write an `onnx.ModelProto` as `OnnxBackend` reads it."""
    library("onnx").save(model, str(directory / onnx.FILE))


def _example() -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, EXAMPLE.for_graph.values()))


@contextmanager
def _tracing() -> Iterator[None]:
    """Without gradients, and without the tracers' remarks."""
    with quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
