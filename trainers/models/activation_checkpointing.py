"""Activation checkpointing: activations are computed again in backward instead of kept.

`full` keeps only the input of each layer. `selective` also keeps what matrix multiplications and
attention gave, and computes again what stands between them: it costs no multiplication.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from trainers.models.dropout import Keys

aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def recomputed(layer: nn.Module, keys: Keys, how: str, hidden: Tensor, mask: Any) -> Tensor:
    """`layer(hidden, mask)`, whose activations are computed again when backward needs them.

    Another micro-batch may be in flight by then, so the keys of dropout are set again too. There is
    no random state to restore: masks are functions of the keys.
    """
    of_samples = keys.keys

    def run(hidden: Tensor, mask: Tensor | None) -> Tensor:
        before, keys.keys = keys.keys, of_samples
        output: Tensor = layer(hidden, mask)
        keys.keys = before
        return output

    contexts: dict[str, Any] = {"context_fn": partial(create_selective_checkpoint_contexts, _keep)}
    output: Tensor = checkpoint(
        run,
        hidden,
        mask,
        use_reentrant=False,
        preserve_rng_state=False,
        **(contexts if how == "selective" else {}),
    )
    return output


def _keep(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation in KEPT:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
