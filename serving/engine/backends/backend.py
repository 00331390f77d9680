"""What computes: texts end to end in, the model's outputs back. Knows no words, labels or tasks."""

from typing import Protocol

import numpy as np

from serving.engine.packed import Packed


class Backend(Protocol):
    """A loaded model. Called from one thread at a time.

    name: as in "openvino int8". num_bytes: of memory that it holds.
    """

    name: str
    num_bytes: int

    def run(self, packed: Packed) -> np.ndarray:
        """Outputs [n, width] float32 of the n tokens that are read."""
