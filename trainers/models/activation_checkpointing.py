"""Activation checkpointing: recompute activations in backward instead of storing them.

`full` stores only the input of each layer. `selective` also stores the outputs of matrix
multiplications and attention, and recomputes the cheap operations between them.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.attention.varlen  # defines its operator
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from trainers.models.dropout import DropoutKeys

aten = torch.ops.aten
SAVED_OPS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
}


def checkpoint_layer(
    layer: nn.Module, keys: DropoutKeys, mode: str, hidden: Tensor, *rest: Any
) -> Tensor:
    """Return `layer(hidden, *rest)`, recomputed in backward. mode: "full" or "selective"."""
    # In a pipeline the recomputation runs while `keys` belongs to another micro-batch, so the texts
    # of this one are captured. Masks are functions of them: there is no RNG state to preserve.
    packed = keys.packed

    def run_layer(hidden: Tensor, *rest: Any) -> Tensor:
        current, keys.packed = keys.packed, packed
        try:
            output: Tensor = layer(hidden, *rest)
        finally:  # a recomputation ends early, by an exception of torch's
            keys.packed = current
        return output

    contexts: dict[str, Any] = {}
    if mode == "selective":
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, _save_matmuls)
    output: Tensor = checkpoint(
        run_layer, hidden, *rest, use_reentrant=False, preserve_rng_state=False, **contexts
    )
    return output


def _save_matmuls(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    save = operation in SAVED_OPS
    return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE
