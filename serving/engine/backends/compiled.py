"""PyTorch compiled to C++ by torch.compile: needs a C++ compiler where it runs.

Compiled once for any number of tokens and of reads, and once more for a single read, which torch
treats apart; both before the first request. Knows no texts and no tasks.
"""

import warnings

import numpy as np
import torch
from torch import nn

from serving.engine.backends.eager import num_bytes_of
from serving.engine.packed import Packed

WARM_UP = ((9, 7), (8,))  # lengths of texts: torch compiles a size of 1 apart


class CompiledBackend:
    """A network of `networks.py`, compiled."""

    def __init__(self, network: nn.Module, name: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)  # of the whole process
        self.name = name
        self.num_bytes = num_bytes_of(network)
        self._network = torch.compile(network, dynamic=True)
        for lengths in WARM_UP:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                rows = [np.ones(length, dtype=np.int64) for length in lengths]
                self.run(Packed.of(rows, list(map(np.arange, lengths))))

    def run(self, packed: Packed) -> np.ndarray:
        """As `Backend.run`; attention goes over rows of texts."""
        with torch.inference_mode():
            outputs = self._network(*map(torch.from_numpy, packed.for_graph.values()))
            array: np.ndarray = outputs.float().numpy()
            return array
