"""A network in int8, in several ways: from all of its layers to half of them.

The layers that hurt most stay in fp32; how many, whoever takes the graphs decides by stopping.
Knows no labels, and no measure of what is good enough.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from serving.build import sensitivity
from serving.build.onnx_int8 import Graph
from serving.engine.packed import Packed

# Shares of the linear layers that stay in fp32, the most sensitive first; tried in this order.
SHARES = (0.0, 0.06, 0.11, 0.17, 0.22, 0.33, 0.5)
NUM_RANKING = 16  # rows that the sensitivity of layers is measured on


def graphs(network: nn.Module, fp32: Path, batches: Sequence[Packed]) -> Iterator[tuple[str, Any]]:
    """Names and `onnx.ModelProto`s, each made when it is asked for.

    fp32: the directory where `export.save_onnx` wrote the network. batches: to calibrate with.
    """
    graph = Graph(fp32, network)
    roundings = graph.roundings(batches)
    names = sensitivity.ranked(network, batches[:NUM_RANKING], roundings)
    for count in dict.fromkeys(round(share * len(names)) for share in SHARES):
        title = f"{count} of {len(names)} layers in fp32"
        yield title, graph.rounded(roundings, names[:count])
