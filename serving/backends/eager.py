"""PyTorch as it comes: the reference that every other backend is measured against.

`torch bf16` where the processor multiplies bf16 faster than fp32. Knows no texts and no tasks.
"""

import numpy as np
import torch
from torch import nn


class EagerBackend:
    """A network of `networks.py`, in `dtype`."""

    def __init__(
        self, network: nn.Module, name: str, num_threads: int, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.set_num_threads(num_threads)  # of the whole process
        self.name = name
        self.network = network.to(dtype)
        self.num_bytes = num_bytes_of(network)

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None
    ) -> np.ndarray:
        """As `Backend.run`."""
        with torch.inference_mode():
            outputs = self.network(
                torch.from_numpy(ids),
                None if mask is None else torch.from_numpy(mask),
                None,
                None if positions is None else torch.from_numpy(positions),
            )
            array: np.ndarray = outputs.float().numpy()
            return array


def num_bytes_of(network: nn.Module) -> int:
    """Memory of the parameters and buffers of `network`, tied ones once."""
    held = {tensor.data_ptr(): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in held.values())
