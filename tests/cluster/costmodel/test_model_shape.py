"""Sizes to parameters and FLOPs: equal to Transformers' own counts and to sums by hand."""

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from cluster.costmodel.model_shape import ModelShape, split_into_stages
from trainers.models.shape import ShapeError, shape_from_config

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 70,
    "max_position_embeddings": 41,
    "num_labels": 3,
}
TOKENS = {"eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
CONFIGS = [
    BertConfig(**SIZES, type_vocab_size=3),
    BertConfig(**SIZES | {"num_hidden_layers": 1}),
    RobertaConfig(**SIZES),
    ElectraConfig(**SIZES, embedding_size=20),
    ElectraConfig(**SIZES, embedding_size=36),
    ModernBertConfig(**SIZES, pad_token_id=0, **TOKENS),
    DistilBertConfig(
        vocab_size=101, dim=36, n_layers=3, n_heads=3, hidden_dim=70, max_position_embeddings=41,
        num_labels=3,
    ),
]  # fmt: skip
BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)
KINDS = {
    "classification": AutoModelForSequenceClassification,
    "masked-lm": AutoModelForMaskedLM,
}


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_parameters_are_those_of_transformers(config: Any, task: str) -> None:
    with torch.device("meta"):
        net = KINDS[task].from_config(config)
    net.tie_weights()
    real = sum(parameter.numel() for parameter in net.parameters())
    assert shape_from_config(config, task, 3).num_parameters == real


def test_bert_base_has_the_parameters_everybody_counts() -> None:
    assert BASE.num_parameters == 109_483_778
    assert BASE.layer_parameters == 7_087_872
    assert ModelShape.for_linear(3, 2).num_parameters == 8


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ShapeError, match=r"a gpt2 model: .*choose one of bert"):
        shape_from_config(type("Config", (), {"model_type": "gpt2"})(), "classification")
    with pytest.raises(ShapeError, match="norm_bias"):
        shape_from_config(ModernBertConfig(norm_bias=True), "classification")


def test_flops_are_the_published_formula() -> None:
    s, h, layers, vocabulary = 512, 768, 12, 30522
    lm = ModelShape(h, layers, 12, 4 * h, vocabulary, 512, 2, h, "masked-lm")
    encoder = layers * (24 * s * h**2 + 4 * s**2 * h)
    assert lm.forward_flops(s, masked=76) == encoder + 2 * 76 * h * (vocabulary + h)
    assert lm.training_flops(s, masked=76) == 3 * lm.forward_flops(s, masked=76)
    # Megatron's closed form counts the head on every token: 72 B s L h^2 (1 + s/6h + V/12Lh).
    closed = 72 * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (12 * layers * h))
    dense = 2 * s * h * h  # the head's dense layer, which the closed form leaves out
    assert lm.training_flops(s, masked=s) - 3 * dense == pytest.approx(closed)


@pytest.mark.parametrize("task", KINDS)
def test_flops_are_what_torch_counts(task: str) -> None:
    config = CONFIGS[0]
    net = KINDS[task].from_config(config, attn_implementation="eager").eval()
    ids = torch.zeros(1, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(ids)
    shape = shape_from_config(config, task, 3)
    whole = 3 * shape.layer_flops(16) + shape.head_flops(masked=16)
    assert counter.get_total_flops() == whole


def test_a_classifier_computes_its_last_layer_for_one_token() -> None:
    s, h = 128, 768
    alone = 4 * s * h**2 + 4 * h**2 + 4 * s * h + 4 * h * 3072
    assert BASE.layers_flops(s) == 11 * BASE.layer_flops(s) + alone
    assert BASE.forward_flops(s) == BASE.layers_flops(s) + 2 * h * (h + 2)
    assert BASE.training_flops(s) == 3 * BASE.forward_flops(s)


@pytest.mark.parametrize(
    "shape",
    [
        BASE,
        replace(BASE, head="masked-lm", num_labels=0),
        replace(BASE, gated=True, pre_norm=True, cls_only=False, embedding_size=128),
        ModelShape.for_linear(3, 2),
    ],
)
def test_the_flops_of_a_batch_are_the_sum_over_its_texts(shape: ModelShape) -> None:
    lengths, masked = (7, 128, 30), (1, 19, 5)
    apart = sum(shape.training_flops(s, m) for s, m in zip(lengths, masked, strict=True))
    squared = sum(s * s for s in lengths)
    found = shape.batch_training_flops(3, sum(lengths), squared, sum(masked))
    assert found == pytest.approx(apart, rel=1e-12)


def test_what_is_frozen_has_no_backward() -> None:
    batch, electra = (3, 165, 7**2 + 128**2 + 30**2), replace(BASE, embedding_size=128)
    whole = electra.batch_training_flops(*batch)
    layer = electra._layer_flops(165, 165, batch[2])
    before = electra.embedding_flops(165)
    embeddings = electra.batch_training_flops(*batch, frozen_layers=0)
    assert embeddings == pytest.approx(whole - 2 * before)
    five = electra.batch_training_flops(*batch, frozen_layers=5)
    assert five == pytest.approx(whole - 2 * before - 10 * layer)
    all_layers = electra.batch_training_flops(*batch, frozen_layers=12)
    forward = (whole - 3 * 3 * electra.head_flops()) / 3
    assert all_layers == pytest.approx(forward + 3 * 3 * electra.head_flops())


@pytest.mark.parametrize("head", ["classification", "masked-lm"])
@pytest.mark.parametrize("num_layers", [1, 2, 6, 12, 24])
def test_stages_hold_every_layer_once_and_none_is_empty(num_layers: int, head: Any) -> None:
    shape = ModelShape(768, num_layers, 12, 3072, 30522, 512, 2, 768, head, 2)
    for num_stages in range(1, num_layers + 1):
        stages = split_into_stages(shape, num_stages)
        assert list(chain(*stages)) == list(range(num_layers))
        assert len(stages) == num_stages and all(map(len, stages))


def test_the_vocabulary_of_a_head_takes_the_place_of_layers() -> None:
    heavy = ModelShape(256, 8, 4, 1024, 120_000, 512, 2, 256, "masked-lm")
    first, last = map(len, split_into_stages(heavy, 2))
    assert first > last
    assert [len(stage) for stage in split_into_stages(BASE, 4)] == [3, 3, 3, 3]
    assert [len(stage) for stage in split_into_stages(BASE, 5)] == [2, 2, 2, 3, 3]
