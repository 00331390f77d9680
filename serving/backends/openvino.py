"""OpenVINO on the CPU. Knows no texts and no tasks, and not who wrote the files."""

from pathlib import Path

import numpy as np

from serving.backends.libraries import library

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
        self._request = compiled.create_infer_request()
        self.num_bytes = sum(path.stat().st_size for path in directory.iterdir())

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None
    ) -> np.ndarray:
        """As `Backend.run`."""
        if mask is None:
            mask = np.ones(ids.shape, dtype=bool)
        values = [ids, mask] if positions is None else [ids, mask, positions]
        self._request.infer(values, share_inputs=True, share_outputs=True)
        outputs: np.ndarray = self._request.get_output_tensor(0).data.copy()
        return outputs
