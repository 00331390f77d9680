"""The vectors of tokens, before they are pooled: the fp32 model of an embedder.

Engines pool inside their graphs, so this loads a model of its own.

    embedder = TokenEmbedder.from_bundle(Path("runs/embedder/bundle"))
    embedder.embed(rows)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from serving.engine.engine import batch_rows, load_model_config
from serving.engine.networks import build_embedder, load_encoder_model
from trainers.models.card import BundleError, read_card
from trainers.models.families import position_ids
from trainers.models.packed import PackedBatch

BATCH_TOKENS = 2048  # computed at once


class TokenEmbedder:
    """A loaded embedder that does not pool. Call it from one thread at a time."""

    def __init__(self, network: nn.Module, config: Mapping[str, Any]) -> None:
        """Bind a network of output "tokens". config: from Transformers' `config.json`."""
        self._network, self._config = network.eval(), config

    @classmethod
    def from_bundle(cls, directory: Path) -> "TokenEmbedder":
        """Load and verify a bundle. Raises BundleError."""
        card = read_card(directory)
        if card.task != "embedding":
            raise BundleError(f"{directory}: a model for {card.task} has no vectors")
        network = build_embedder(load_encoder_model(str(directory)), "tokens")
        return cls(network, load_model_config(directory))

    def embed(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the vectors [tokens, width] of each row of token ids, in order."""
        found: list[np.ndarray] = []
        for batch in batch_rows(rows, BATCH_TOKENS) if rows else ():
            positions = [position_ids(self._config, row) for row in batch]
            reads = np.arange(sum(map(len, batch)))
            packed = PackedBatch.from_rows(batch, positions, reads)
            with torch.inference_mode():
                tensors = map(torch.from_numpy, packed.arrays)
                vectors = self._network(*tensors, lengths=packed.lengths).numpy()
            found += np.split(vectors, np.cumsum(packed.lengths)[:-1])
        return found
