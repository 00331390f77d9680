"""PyTorch, eager (the reference of every other backend) and compiled by torch.compile."""

import warnings

import numpy as np
import torch
from torch import nn

from trainers.models.packed import PackedBatch

WARM_UP = ((9, 7), (8,))  # lengths of texts: torch specializes on a size of 1


class EagerBackend:
    """A network of `networks.py`, in `dtype`; attention goes text by text."""

    def __init__(
        self, network: nn.Module, name: str, num_threads: int, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.set_num_threads(num_threads)  # of the whole process
        self.name = name
        self.network = network.to(dtype)
        self.num_bytes = parameter_bytes(network)

    def run(self, packed: PackedBatch) -> np.ndarray:
        """As `Backend.run`."""
        with torch.inference_mode():
            tensors = map(torch.from_numpy, packed.arrays)
            array: np.ndarray = self.network(*tensors, lengths=packed.lengths).float().numpy()
            return array


class CompiledBackend:
    """A network of `networks.py`, compiled to C++; attention goes over padded rows of texts.

    Needs a C++ compiler where it runs. Compiled once for any number of tokens and of reads, and
    once more for a single read; both before the first request.
    """

    def __init__(self, network: nn.Module, name: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)  # of the whole process
        self.name = name
        self.num_bytes = parameter_bytes(network)
        self._network = torch.compile(network, dynamic=True)
        for lengths in WARM_UP:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                rows = [np.ones(length, dtype=np.int64) for length in lengths]
                self.run(PackedBatch.from_rows(rows, list(map(np.arange, lengths))))

    def run(self, packed: PackedBatch) -> np.ndarray:
        """As `Backend.run`."""
        with torch.inference_mode():
            outputs = self._network(*map(torch.from_numpy, packed.graph_inputs.values()))
            array: np.ndarray = outputs.float().numpy()
            return array


def parameter_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of `network`, tied ones once."""
    tensors = {each.data_ptr(): each for each in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
