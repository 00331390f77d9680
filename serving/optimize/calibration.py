"""What the linear layers of a network are given on some texts. Knows no graph and no rounding."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.engine.packed import Packed

NUM_TOKENS = 8192  # of all texts together, that are kept


@dataclass(frozen=True)
class Seen:
    """The inputs of a layer on some texts: the least and greatest of each channel [channels], and
    a sample of them [n, channels].
    """

    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray

    @classmethod
    def of(cls, inputs: np.ndarray, num_sampled: int) -> "Seen":
        """Of inputs [n, channels], `num_sampled` of them evenly spread in the sample."""
        rows = np.unique(np.linspace(0, len(inputs) - 1, num_sampled).astype(int))
        return cls(inputs.min(axis=0), inputs.max(axis=0), inputs[rows])

    @classmethod
    def joined(cls, parts: "Sequence[Seen]") -> "Seen":
        """What was seen in any of `parts`."""
        return cls(
            np.min([part.low for part in parts], axis=0),
            np.max([part.high for part in parts], axis=0),
            np.concatenate([part.sample for part in parts]),
        )


def inputs_of(
    network: nn.Module, names: Sequence[str], batches: Sequence[Packed]
) -> list[tuple[list[str], Seen]]:
    """What each of the layers `names` is given on `batches`; layers that share an input together.

    In the order in which they compute.
    """
    parts: dict[tuple[str, ...], list[Seen]] = {}
    each = max(2, NUM_TOKENS // len(batches))
    for batch in batches:
        with torch.inference_mode(), _noted(network, names) as noted:
            network(*map(torch.from_numpy, batch.arrays), spans=batch.spans)
        for inputs, sharing in noted:
            rows = inputs.reshape(-1, inputs.shape[-1]).numpy()
            parts.setdefault(tuple(sharing), []).append(Seen.of(rows, each))
    return [(list(sharing), Seen.joined(found)) for sharing, found in parts.items()]


@contextmanager
def _noted(network: nn.Module, names: Sequence[str]) -> Iterator[list[tuple[Tensor, list[str]]]]:
    """Inputs, and the layers that were given each of them, of what is computed in the block."""
    noted: list[tuple[Tensor, list[str]]] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for seen, sharing in noted:
                if seen is inputs[0]:
                    sharing.append(name)
                    return
            noted.append((inputs[0], [name]))

        return hook

    hooks = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    try:
        yield noted
    finally:
        for hook in hooks:
            hook.remove()
