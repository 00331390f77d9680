"""Attention in training: by the fused kernel and multiplied out, it is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig

from cluster.costmodel.memory import attention_storage
from tests.support.layouts import make_loop
from trainers.config import recipe as recipes
from trainers.data.microbatch import sample_keys
from trainers.distributed.device import DEVICES
from trainers.models.bert import TextModel
from trainers.models.packed import PackedTexts

CONFIGS = {
    "bert": BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, attention_probs_dropout_prob=0.0,
    ),
    "distilbert": DistilBertConfig(
        vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=64, attention_dropout=0.0
    ),
}  # fmt: skip


def gradients(model: TextModel, fused: bool, lengths: list[int]) -> dict[str, Tensor]:
    """Of a sum of logits, dropout on."""
    model.zero_grad()
    model.set_fused_attention(fused)
    ids = torch.arange(5, 5 + sum(lengths))[None]
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(len(lengths))))
    model(ids, PackedTexts.from_lengths(lengths, keys=keys)).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", [[12, 12, 12], [12, 5, 1, 11]])
@pytest.mark.parametrize("family", CONFIGS)
def test_multiplied_out_it_is_the_same(
    family: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = TextModel(AutoModelForSequenceClassification.from_config(CONFIGS[family])).train()
    expected = gradients(model, True, lengths)
    monkeypatch.delattr(torch.nn.functional, "scaled_dot_product_attention")
    found = gradients(model, False, lengths)
    assert found.keys() == expected.keys() != set()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", DEVICES)
def test_arithmetic_of_memory_knows_which(kind: str, precision: str) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else None
    fused = DEVICES[kind].prefers_fused_attention(dtype)
    assert attention_storage(0.0, kind, precision) == ("fused" if fused else "kept")
    assert attention_storage(0.1, kind, precision) == "dropped"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_takes_what_is_fastest(
    precision: str, tiny_bert: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def watched(*given: Tensor, **named: object) -> Tensor:
        called.append(torch.is_grad_enabled())
        return fused(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    words = [f"model.name={tiny_bert}", f"data.source={corpus}", f"precision={precision}"]
    words += ["batch.max_length=32"]
    loop = make_loop(recipes.load_recipe("csv", [*words, "stopping.max_steps=2"]), tmp_path)
    assert list(loop.run())
    assert any(called) == (precision == "fp32")
