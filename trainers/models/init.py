"""Fresh weights, each a function of (seed, name) alone.

Drawing every parameter from its own stream makes a shard of a model the same numbers on any layout,
without any rank ever holding the whole. The distribution is BERT's: normal for linear and embedding
weights, with the configuration's `initializer_range`; zero for biases and padding rows, one for
the weights of norms.
"""

import hashlib

import torch
from torch import Tensor, nn

from trainers.distributed.dtensor import local_part, to_local
from trainers.models.bert import TextModel


@torch.no_grad()
def fill(model: TextModel, seed: int) -> None:
    """Set every parameter of `model`, whole or a part, sharded or not, on its device."""
    deviation = float(model.config.initializer_range)
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            canonical = _canonical(full, model.tied)
            padding = getattr(module, "padding_idx", None)
            if canonical != full:  # it is the table of the embedding, whose padding row is zero
                padding = model.config.pad_token_id
            values = _draw(module, name, canonical, parameter.shape, seed, deviation)
            if padding is not None and values.dim() == 2:
                values[padding] = 0.0
            to_local(parameter).copy_(local_part(values, parameter))
    _buffers(model)


def _canonical(name: str, tied: dict[str, str]) -> str:
    """The name under which a tied parameter is drawn."""
    inner = name.removeprefix("net.")
    return f"net.{tied.get(inner, inner)}"


def _draw(
    module: nn.Module, name: str, full: str, shape: torch.Size, seed: int, deviation: float
) -> Tensor:
    if name != "weight" or len(shape) < 2:
        return torch.full(shape, float(isinstance(module, nn.LayerNorm) and name == "weight"))
    digest = hashlib.sha256(f"{seed}/{full}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)


def _buffers(model: TextModel) -> None:
    """Position and token-type ids, which were only shapes on the meta device."""
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        else:
            buffer.zero_()
