"""A network in int8, in several ways: from all of its layers to half of them.

The layers that hurt most stay in fp32; how many, whoever takes the graphs decides by stopping.
Knows no labels, and no measure of what is good enough.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from serving import sensitivity
from serving.networks import Masked
from serving.onnx_int8 import Batch, Graph
from trainers.encoding import Encoder, Samples, TextEncoder

# Shares of the linear layers that stay in fp32, the most sensitive first; tried in this order.
SHARES = (0.0, 0.06, 0.11, 0.17, 0.22, 0.33, 0.5)
NUM_RANKING = 16  # rows that the sensitivity of layers is measured on


def calibration(samples: Samples, encoder: Encoder, masked_lm: bool) -> list[Batch]:
    """Each sample as inputs of the graph, alone and so without padding."""
    batches = []
    for start, stop in zip(samples.offsets[:-1], samples.offsets[1:], strict=True):
        ids = samples.values[None, start:stop].astype(np.int64)
        batch = [ids, np.ones(ids.shape, dtype=bool)]
        if masked_lm:
            assert isinstance(encoder, TextEncoder)
            batch.append(np.flatnonzero(ids == encoder.tokenizer.mask_token_id))
        batches.append(batch)
    return batches


def graphs(network: nn.Module, fp32: Path, batches: Sequence[Batch]) -> Iterator[tuple[str, Any]]:
    """Names and `onnx.ModelProto`s, each made when it is asked for.

    fp32: the directory where `export.save_onnx` wrote the network.
    """
    wrapped = Masked(network)
    graph = Graph(fp32, wrapped)
    roundings = graph.roundings(batches)
    tensors = [tuple(map(torch.from_numpy, batch)) for batch in batches[:NUM_RANKING]]
    names = sensitivity.ranked(wrapped, tensors, roundings)
    for count in dict.fromkeys(round(share * len(names)) for share in SHARES):
        title = f"{count} of {len(names)} layers in fp32"
        yield title, graph.rounded(roundings, names[:count])
