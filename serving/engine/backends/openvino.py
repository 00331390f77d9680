"""OpenVINO on the CPU. Knows no texts and no tasks, and not who wrote the files."""

from pathlib import Path

import numpy as np

from serving.engine.backends.lazy_import import library
from serving.engine.packed import FOLD, INPUTS, Packed

FILE = "model.xml"


class OpenVinoBackend:
    """An OpenVINO model that `export.to_openvino` wrote. precision: "f32" or "bf16", of whatever
    is not int8.
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
        self.name = name
        compiled = library("openvino").Core().compile_model(directory / FILE, "CPU", settings)
        # An input may have a name of the tracer's beside its own, and one that is not read is gone.
        self._names = [next(iter(each.names & {*INPUTS, *FOLD})) for each in compiled.inputs]
        self._request = compiled.create_infer_request()
        self.num_bytes = sum(path.stat().st_size for path in directory.iterdir())

    def run(self, packed: Packed) -> np.ndarray:
        """As `Backend.run`."""
        values = packed.for_graph
        inputs = [values[name] for name in self._names]
        self._request.infer(inputs, share_inputs=True, share_outputs=True)
        outputs: np.ndarray = self._request.get_output_tensor(0).data.copy()
        return outputs
