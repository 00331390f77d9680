"""Activation statistics: the inputs that the linear layers of a network get on some texts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.models.packed import PackedBatch

NUM_TOKENS = 8192  # of all texts together, that are kept


@dataclass(frozen=True)
class ActivationStats:
    """The inputs of a layer on some texts.

    low, high: [channels], the least and greatest of each channel. sample: [n, channels].
    """

    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray

    @classmethod
    def from_inputs(cls, inputs: np.ndarray, num_sampled: int) -> "ActivationStats":
        """Summarize inputs [n, channels]; sample `num_sampled` of them, evenly spread."""
        rows = np.unique(np.linspace(0, len(inputs) - 1, num_sampled).astype(int))
        return cls(inputs.min(axis=0), inputs.max(axis=0), inputs[rows])

    @classmethod
    def merge(cls, parts: "Sequence[ActivationStats]") -> "ActivationStats":
        """Merge the statistics of several batches."""
        return cls(
            np.min([part.low for part in parts], axis=0),
            np.max([part.high for part in parts], axis=0),
            np.concatenate([part.sample for part in parts]),
        )


def collect_activation_stats(
    network: nn.Module, names: Sequence[str], batches: Sequence[PackedBatch]
) -> list[tuple[list[str], ActivationStats]]:
    """Return the statistics of the layers `names` on `batches`, in the order of computation.

    Layers that share an input tensor (query, key, value) come together: their inputs are quantized
    once, so they must share one quantizer.
    """
    parts: dict[tuple[str, ...], list[ActivationStats]] = {}
    num_sampled = max(2, NUM_TOKENS // len(batches))
    for batch in batches:
        with torch.inference_mode(), _record_inputs(network, names) as recorded:
            network(*map(torch.from_numpy, batch.arrays), lengths=batch.lengths)
        for inputs, sharing in recorded:
            rows = inputs.reshape(-1, inputs.shape[-1]).numpy()
            stats = ActivationStats.from_inputs(rows, num_sampled)
            parts.setdefault(tuple(sharing), []).append(stats)
    return [(list(sharing), ActivationStats.merge(stats)) for sharing, stats in parts.items()]


@contextmanager
def _record_inputs(
    network: nn.Module, names: Sequence[str]
) -> Iterator[list[tuple[Tensor, list[str]]]]:
    """Record each input tensor, and the layers that were given it, of what runs in the block."""
    recorded: list[tuple[Tensor, list[str]]] = []

    def record(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for tensor, sharing in recorded:
                if tensor is inputs[0]:
                    sharing.append(name)
                    return
            recorded.append((inputs[0], [name]))

        return hook

    hooks = [network.get_submodule(name).register_forward_pre_hook(record(name)) for name in names]
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
