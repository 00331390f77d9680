"""A network leaves torch: as a graph of OpenVINO or of ONNX, for any batch and any length.

The graph is traced from the very modules that torch runs, so it too computes [CLS] alone in the
last layer of a classifier. Knows no texts, and nothing of speed or agreement.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serving.backends import onnx, openvino
from serving.backends.libraries import library
from serving.networks import Masked
from trainers.architecture import quiet

OPSET = 18
EXAMPLE = (2, 8)  # batch and length of what is traced; neither stays in the graph


def to_openvino(network: nn.Module, takes_positions: bool) -> Any:
    """The `openvino.Model` of a network, fp32."""
    module = library("openvino")
    with _tracing():
        model = module.convert_model(Masked(network), example_input=_example(takes_positions))
    shapes = [[-1, -1], [-1, -1], [-1]][: len(model.inputs)]
    model.reshape({index: module.PartialShape(shape) for index, shape in enumerate(shapes)})
    return model


def save_openvino(model: Any, directory: Path) -> None:
    """Write an `openvino.Model` as `OpenVinoBackend` reads it."""
    library("openvino").save_model(model, directory / openvino.FILE, compress_to_fp16=False)


def save_onnx(network: nn.Module, takes_positions: bool, directory: Path) -> None:
    """Write a network, fp32, as `OnnxBackend` reads it."""
    names = ["ids", "mask", "positions"][: 2 + takes_positions]
    axes: dict[str, dict[int, str]] = {
        "ids": {0: "batch", 1: "length"},
        "mask": {0: "batch", 1: "length"},
        "positions": {0: "masks"},
        "outputs": {0: "rows"},
    }
    with _tracing():
        # The tracing exporter needs no more than `onnx`, and follows shapes as OpenVINO's does.
        torch.onnx.export(
            Masked(network),
            _example(takes_positions),
            str(directory / onnx.FILE),
            input_names=names,
            output_names=["outputs"],
            dynamic_axes={name: axes[name] for name in (*names, "outputs")},
            opset_version=OPSET,
            dynamo=False,
        )


def write_onnx(model: Any, directory: Path) -> None:
    """Write an `onnx.ModelProto` as `OnnxBackend` reads it."""
    library("onnx").save(model, str(directory / onnx.FILE))


def _example(takes_positions: bool) -> tuple[Tensor, ...]:
    """Inputs to trace with; what they hold does not matter."""
    ids = torch.arange(EXAMPLE[0] * EXAMPLE[1]).view(EXAMPLE) % 4 + 5
    mask = torch.ones(EXAMPLE, dtype=torch.bool)
    mask[-1, -1] = False
    return (ids, mask, torch.tensor([1, 9])) if takes_positions else (ids, mask)


@contextmanager
def _tracing() -> Iterator[None]:
    """Without gradients, and without the tracers' remarks."""
    with quiet(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
