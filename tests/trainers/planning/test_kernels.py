"""The kernels that the planner assumes of a layer are those that training launches on CUDA.

Counted as operations that compute, one kernel each, on CPU tensors under CUDA's autocast rules,
with one operation in the place of flash attention. Nothing is timed.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, BertConfig

from cluster.costmodel.constants import PACKED, STACKS, Stack
from trainers.data.microbatch import sample_keys
from trainers.models import attention
from trainers.models.bert import TextModel
from trainers.models.packed import PackedTexts
from trainers.planning.fake import cuda_autocast_rules

LENGTHS = [5, 9, 3, 7]
FREE = ("aten.empty", "aten.detach", "aten._local_scalar", "aten._unsafe_view")


class KernelCounter(TorchDispatchMode):
    """Counts operations that neither only look at memory nor only reserve it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and not str(func).startswith(FREE):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let training take flash attention: one operation, and one in backward."""

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            ctx.like = key
            return query.relu()

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            key = torch.empty_like(ctx.like)
            return gradients[0].relu(), key, key

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        result: Tensor = Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
        return result

    monkeypatch.setattr(varlen, "varlen_attn", attend)
    monkeypatch.setattr(attention, "has_varlen_attention", lambda device, dtype: True)
    with cuda_autocast_rules():
        yield


def count_kernels(num_layers: int, attention_dropout: float) -> int:
    """Count the kernels of a micro-batch's forward and backward."""
    config = BertConfig(
        vocab_size=99, hidden_size=64, num_hidden_layers=num_layers, num_attention_heads=4,
        intermediate_size=128, attention_probs_dropout_prob=attention_dropout,
    )  # fmt: skip
    model = TextModel(AutoModelForSequenceClassification.from_config(config)).train()
    ids = torch.arange(5, 5 + sum(LENGTHS))[None]
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(len(LENGTHS))))

    def train() -> None:
        packed = PackedTexts.from_lengths(LENGTHS, keys=keys)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, packed).float().square().sum()
        loss.backward()

    train()  # the first has no gradients to add to, and hashes positions
    with KernelCounter() as counter:
        train()
    return sum(counter.counts.values())


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize(
    ("stack", "attention_dropout"), [(PACKED, 0.0), (STACKS["packed-unfused"], 0.1)]
)
def test_a_layer_launches_what_the_planner_reckons_with(
    stack: Stack, attention_dropout: float
) -> None:
    more, fewer = (count_kernels(n, attention_dropout) for n in (6, 2))
    assert (more - fewer) / 4 / 3 == pytest.approx(stack.kernels, rel=0.04)
