"""Flash attention over texts of various lengths, as torch documents it, for a CPU."""

import inspect

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from serving.engine.backends import accelerator
from trainers.models import attention


def attend_by_text(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
) -> Tensor:
    """What `varlen_attn` computes; zeros for queries of a text without keys.

    [t, heads, d] each. max_q, max_k: bounds, as a captured graph knows no more.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q >= int(cu_seq_q.diff().max()) and max_k >= int(cu_seq_k.diff().max())
    assert cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key) == len(value)
    attended = torch.zeros_like(query)
    for text in range(len(cu_seq_q) - 1):
        queries = slice(int(cu_seq_q[text]), int(cu_seq_q[text + 1]))
        keys = slice(int(cu_seq_k[text]), int(cu_seq_k[text + 1]))
        if keys.stop > keys.start:
            scores = torch.einsum("qhd,khd->hqk", query[queries], key[keys]) * scale
            attended[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[keys])
    return attended


def use_varlen_attention(patch: pytest.MonkeyPatch) -> None:
    """Let this CPU have it, by `attend_by_text`, in every dtype, as the card that it stands for."""
    theirs = inspect.signature(varlen.varlen_attn).parameters
    ours = inspect.signature(attend_by_text).parameters
    assert [name for name in theirs if name in ours] == list(ours)
    patch.setattr(varlen, "varlen_attn", attend_by_text)
    for module in (attention, accelerator):
        patch.setattr(module, "has_varlen_attention", lambda *_: True)
