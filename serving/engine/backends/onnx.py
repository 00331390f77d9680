"""ONNX Runtime on the CPU. Knows no texts and no tasks, and not who wrote the file."""

from pathlib import Path

import numpy as np

from serving.engine.backends.lazy_import import library
from serving.engine.packed import Packed

FILE = "model.onnx"


class OnnxBackend:
    """An ONNX file that `export.to_onnx` wrote."""

    def __init__(self, directory: Path, name: str, num_threads: int) -> None:
        onnxruntime = library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        # A thread that spins while it waits takes the core of another replica.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self.name = name
        self._session = onnxruntime.InferenceSession(
            str(directory / FILE), options, providers=["CPUExecutionProvider"]
        )
        self._names = [each.name for each in self._session.get_inputs()]
        self.num_bytes = sum(path.stat().st_size for path in directory.iterdir())

    def run(self, packed: Packed) -> np.ndarray:
        """As `Backend.run`."""
        values = packed.for_graph
        outputs: np.ndarray = self._session.run(None, {name: values[name] for name in self._names})[
            0
        ]
        return outputs
