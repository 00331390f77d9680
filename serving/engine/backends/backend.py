"""The interface of a backend, and the import of libraries that may be absent."""

import importlib
import sys
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from serving.engine.devices import EngineDevice
from trainers.models.packed import PackedBatch


class Backend(Protocol):
    """A loaded model. Called from one thread at a time.

    name: as in "openvino int8". num_bytes: memory that it holds.
    """

    name: str
    num_bytes: int

    def run(self, packed: PackedBatch) -> np.ndarray:
        """Return outputs [n, width] float32 of the n tokens that are read."""


@runtime_checkable
class OverlappingBackend(Backend, Protocol):
    """A backend on a device beside the host, which packs the next batch meanwhile."""

    device: EngineDevice

    def start(self, packed: PackedBatch) -> Callable[[], np.ndarray]:
        """Begin a batch; return what waits for the outputs of `run`. Two may be under way."""


def import_optional(name: str) -> Any:
    """Import "openvino", "onnx", "onnxruntime" or a part of them.

    OpenVINO reports its use to its makers from the moment it is imported, unless its telemetry
    package cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module(name)
