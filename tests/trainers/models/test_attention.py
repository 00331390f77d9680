"""Attention in training: by the fused kernel and multiplied out, it is the same."""

import copy
import dataclasses
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)

from cluster.costmodel.memory import attention_storage
from tests.support.layouts import make_loop
from tests.support.padded import pack
from tests.support.varlen import attend_by_text
from trainers.config import recipe as recipes
from trainers.data.microbatch import sample_keys
from trainers.distributed.device import DEVICES
from trainers.models import attention
from trainers.models.bert import TextModel
from trainers.models.packed import PackedTexts

CONFIGS = {
    "bert": BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, attention_probs_dropout_prob=0.0,
    ),
    "roberta": RobertaConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, attention_probs_dropout_prob=0.0, pad_token_id=0,
    ),
    "electra": ElectraConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, attention_probs_dropout_prob=0.0, embedding_size=16,
    ),
    "distilbert": DistilBertConfig(
        vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=64, attention_dropout=0.0
    ),
}  # fmt: skip


def gradients(
    model: TextModel, fused: bool, lengths: list[int], reads: Tensor | None = None
) -> dict[str, Tensor]:
    """Of a sum of logits, dropout on."""
    model.zero_grad()
    model.set_fused_attention(fused)
    ids = torch.arange(5, 5 + sum(lengths))[None]
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(len(lengths))))
    model(ids, PackedTexts.from_lengths(lengths, reads=reads, keys=keys)).square().sum().backward()
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


@pytest.mark.parametrize("task", ["classification", "masked-lm"])
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_is_what_transformers_computes_of_padded_rows(family: str, task: str) -> None:
    """Logits and gradients, with a pad inside a text, which RoBERTa's positions do not count."""
    torch.manual_seed(0)
    kind = AutoModelForMaskedLM if task == "masked-lm" else AutoModelForSequenceClassification
    config = copy.deepcopy(CONFIGS[family])
    config.pad_token_id, config._attn_implementation = 0, "eager"
    for name in ("hidden_dropout_prob", "dropout", "seq_classif_dropout", "classifier_dropout"):
        setattr(config, name, 0.0)
    theirs = kind.from_config(config).train()
    ours = TextModel(copy.deepcopy(theirs)).train()
    ids = torch.arange(5, 5 + 48).view(4, 12)
    present = torch.arange(12) < torch.tensor([12, 5, 1, 11])[:, None]
    ids[0, 3] = 0
    flat, packed = pack(ids, present, torch.zeros(4, dtype=torch.int64))
    expected = theirs(input_ids=ids.masked_fill(~present, 0), attention_mask=present).logits
    if task == "masked-lm":
        packed = dataclasses.replace(packed, reads=torch.arange(flat.shape[1]))
        expected = expected[present]
    found = ours(flat, packed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    own = {name.removeprefix("net."): p.grad for name, p in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None and "token_type" not in name:
            torch.testing.assert_close(own[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_reference_takes_what_the_kernel_takes() -> None:
    theirs = inspect.signature(varlen.varlen_attn).parameters
    ours = inspect.signature(attend_by_text).parameters
    assert [n for n in theirs if n in ours] == list(ours)
    for name, parameter in ours.items():
        assert theirs[name].kind is parameter.kind, name
    for name, parameter in theirs.items():
        assert name in ours or parameter.default is not inspect.Parameter.empty, name


@pytest.mark.parametrize("task", ["classification", "masked-lm"])
@pytest.mark.parametrize("family", CONFIGS)
def test_what_a_gpu_runs_is_what_rows_compute(
    family: str, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    kind = AutoModelForMaskedLM if task == "masked-lm" else AutoModelForSequenceClassification
    model = TextModel(kind.from_config(CONFIGS[family])).train()
    lengths, reads = [12, 5, 1, 11], torch.tensor([1, 4, 13, 20]) if task == "masked-lm" else None
    expected = gradients(model, True, lengths, reads)
    called: list[int] = []

    def kernel(*given: Any, **named: Any) -> Tensor:
        called.append(len(given[0]))
        return attend_by_text(*given, **named)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "has_varlen_attention", lambda *_: True)
    found = gradients(model, True, lengths, reads)
    reads_cls_alone = task == "classification" and family != "distilbert"
    assert called == [29, 29, 4 if reads_cls_alone else 29]
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "has"),
    [
        ("cuda", torch.bfloat16, (9, 0), True),
        ("cuda", torch.float16, (8, 0), True),
        ("cuda", torch.float16, (7, 5), False),
        ("cuda", torch.float32, (9, 0), False),
        ("cpu", torch.bfloat16, (9, 0), False),
    ],
)
def test_flash_attention_is_taken_where_it_is(
    device: str,
    dtype: torch.dtype,
    capability: tuple[int, int],
    has: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert attention.has_varlen_attention(torch.device(device), dtype) is has


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
