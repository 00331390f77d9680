"""PyTorch as it comes: the reference that every other backend is measured against.

`torch bf16` where the processor multiplies bf16 faster than fp32. Knows no texts and no tasks.
"""

import numpy as np
import torch
from torch import nn

from serving.engine.packed import Packed


class EagerBackend:
    """A network of `networks.py`, in `dtype`."""

    def __init__(
        self, network: nn.Module, name: str, num_threads: int, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.set_num_threads(num_threads)  # of the whole process
        self.name = name
        self.network = network.to(dtype)
        self.num_bytes = num_bytes_of(network)

    def run(self, packed: Packed) -> np.ndarray:
        """As `Backend.run`; attention goes text by text."""
        with torch.inference_mode():
            tensors = map(torch.from_numpy, packed.arrays)
            array: np.ndarray = self.network(*tensors, spans=packed.spans).float().numpy()
            return array


def num_bytes_of(network: nn.Module) -> int:
    """Memory of the parameters and buffers of `network`, tied ones once."""
    held = {tensor.data_ptr(): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())
