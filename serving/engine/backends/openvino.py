"""OpenVINO on the CPU."""

from pathlib import Path

import numpy as np

from serving.engine.backends.backend import import_optional
from trainers.models.packed import FOLD_INPUTS, INPUTS, PackedBatch

FILE = "model.xml"


class OpenVinoBackend:
    """An OpenVINO model that `serving.optimize.export` wrote.

    precision: "f32" or "bf16", of the layers that are not int8.
    """

    def __init__(
        self, directory: Path, name: str, num_threads: int, precision: str = "f32"
    ) -> None:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": num_threads,
            "INFERENCE_PRECISION_HINT": precision,
            # Replicas know nothing of one another: pinned, all would sit on the first core.
            "ENABLE_CPU_PINNING": False,
        }
        core = import_optional("openvino").Core()
        compiled = core.compile_model(directory / FILE, "CPU", settings)
        self.name = name
        # The tracer may add a name of its own to an input, and drops inputs that are not read.
        self._names = [next(iter(each.names & {*INPUTS, *FOLD_INPUTS})) for each in compiled.inputs]
        self._request = compiled.create_infer_request()
        self.num_bytes = sum(path.stat().st_size for path in directory.iterdir())

    def run(self, packed: PackedBatch) -> np.ndarray:
        """As `Backend.run`."""
        values = packed.graph_inputs
        inputs = [values[name] for name in self._names]
        self._request.infer(inputs, share_inputs=True, share_outputs=True)
        outputs: np.ndarray = self._request.get_output_tensor(0).data.copy()
        return outputs
