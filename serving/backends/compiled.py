"""PyTorch compiled to C++ by torch.compile: needs a C++ compiler where it runs.

Compiled once for any batch and any length, and once more for a single text, which torch treats
apart; both before the first request. Knows no texts and no tasks.
"""

import warnings

import numpy as np
import torch
from torch import nn

from serving.backends.eager import num_bytes_of

WARM_UP = ((2, 8), (1, 8))  # batches and lengths: torch compiles a size of 1 apart


class CompiledBackend:
    """A network of `networks.py`, compiled."""

    def __init__(
        self, network: nn.Module, name: str, num_threads: int, takes_positions: bool
    ) -> None:
        torch.set_num_threads(num_threads)  # of the whole process
        self.name = name
        self.num_bytes = num_bytes_of(network)
        self._network = torch.compile(network, dynamic=True)
        for batch, length in WARM_UP:
            ids = np.ones((batch, length), dtype=np.int64)
            positions = np.arange(2, dtype=np.int64) if takes_positions else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's, about itself
                self.run(ids, None, positions)

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray | None
    ) -> np.ndarray:
        """As `Backend.run`."""
        if mask is None:
            mask = np.ones(ids.shape, dtype=bool)  # one graph is compiled, not two
        with torch.inference_mode():
            outputs = self._network(
                torch.from_numpy(ids),
                torch.from_numpy(mask),
                None,
                None if positions is None else torch.from_numpy(positions),
            )
            array: np.ndarray = outputs.float().numpy()
            return array
