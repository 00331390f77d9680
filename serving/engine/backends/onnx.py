"""ONNX Runtime on the CPU."""

from pathlib import Path

import numpy as np

from serving.engine.backends.backend import import_optional
from trainers.models.packed import PackedBatch

FILE = "model.onnx"


class OnnxBackend:
    """An ONNX file that `serving.optimize.export` wrote."""

    def __init__(self, directory: Path, name: str, num_threads: int) -> None:
        onnxruntime = import_optional("onnxruntime")
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

    def run(self, packed: PackedBatch) -> np.ndarray:
        """As `Backend.run`."""
        values = packed.graph_inputs
        outputs: list[np.ndarray] = self._session.run(None, {n: values[n] for n in self._names})
        return outputs[0]
