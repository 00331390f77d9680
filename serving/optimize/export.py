"""Export a network from torch: as a graph of OpenVINO or of ONNX, for any texts.

The graph is traced from the very modules that torch runs, so it too computes [CLS] alone in the
last layer of a classifier.
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
from serving.engine.backends.backend import import_optional
from trainers.models.config import quiet_transformers
from trainers.models.packed import PackedBatch

OPSET = 18
# The traced example; neither the number of texts nor a length stays in the graph.
EXAMPLE = PackedBatch.from_rows([np.arange(5, 14), np.arange(5, 12)], [np.arange(9), np.arange(7)])


def convert_to_openvino(network: nn.Module) -> Any:
    """Return the `openvino.Model` of a network, fp32."""
    module = import_optional("openvino")
    with quiet_tracing():
        return module.convert_model(network, example_input=_example_inputs())


def save_openvino(model: Any, directory: Path) -> None:
    """Write an `openvino.Model` as `OpenVinoBackend` reads it."""
    path = directory / openvino.FILE
    import_optional("openvino").save_model(model, path, compress_to_fp16=False)


def export_onnx(network: nn.Module, directory: Path) -> None:
    """Write a network, fp32, as `OnnxBackend` reads it."""
    inputs = list(EXAMPLE.graph_inputs)
    axes = {"reads": {0: "reads"}, "outputs": {0: "reads"}}
    axes |= {name: {0: "rows", 1: "width"} for name in ("grid", "owners")}
    with quiet_tracing():
        # The tracing exporter needs no more than `onnx`, and follows shapes as OpenVINO's does.
        torch.onnx.export(
            network,
            _example_inputs(),
            str(directory / onnx.FILE),
            input_names=inputs,
            output_names=["outputs"],
            dynamic_axes={name: {0: "tokens"} for name in inputs} | axes,
            opset_version=OPSET,
            dynamo=False,
        )


def save_onnx_model(model: Any, directory: Path) -> None:
    """Write an `onnx.ModelProto` as `OnnxBackend` reads it."""
    import_optional("onnx").save(model, str(directory / onnx.FILE))


def _example_inputs() -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, EXAMPLE.graph_inputs.values()))


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Trace without gradients, and without the remarks of the tracers."""
    with quiet_transformers(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracers' remarks
        yield
