"""Tensor-parallel plans by the names of modules."""

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from trainers.distributed.collectives import all_gather, identity, keep_rank0, local_chunk
from trainers.distributed.tensor_parallel import (
    ColwiseParallel,
    PrepareInput,
    Redistribute,
    RowwiseParallel,
    SequenceParallelNorm,
    VocabParallelEmbedding,
)
from trainers.models.bert import TextModel
from trainers.parallel.tp_plan import TensorParallelPlan, build_tp_plan

FIRST, LAST = "net.bert.encoder.layer.0", "net.bert.encoder.layer.1"


@pytest.fixture(scope="module")
def models() -> dict[str, TextModel]:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "vocab_size": 20}
    bert = BertConfig(num_hidden_layers=2, intermediate_size=16, **sizes)
    distil = DistilBertConfig(dim=8, n_layers=2, n_heads=2, hidden_dim=16, vocab_size=20)
    with torch.device("meta"):
        nets = {
            "classifier": BertForSequenceClassification(bert),
            "masked-lm": BertForMaskedLM(bert),
            "distilbert": DistilBertForSequenceClassification(distil),
        }
    return {name: TextModel(net) for name, net in nets.items()}


def moves(plan: TensorParallelPlan, name: str) -> tuple[object, object]:
    style = plan[name]
    assert isinstance(style, Redistribute)
    return style.forward, style.backward


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("name", ["classifier", "masked-lm", "distilbert"])
def test_every_name_is_a_module_and_every_linear_layer_of_a_layer_has_a_style(
    models: dict[str, TextModel], name: str, sequence_parallel: bool
) -> None:
    model = models[name]
    plan = build_tp_plan(model, sequence_parallel)
    for style_name in plan:
        model.get_submodule(style_name)
    prefix = f"net.{model.family.encoder}.{model.family.layers}."
    linear = {
        each
        for each, module in model.named_modules()
        if isinstance(module, nn.Linear) and each.startswith(prefix)
    }
    styled = {
        each for each, style in plan.items() if isinstance(style, ColwiseParallel | RowwiseParallel)
    }
    assert linear <= styled and len(linear) == 12


def test_attention_is_prepared_once_for_queries_keys_and_values(
    models: dict[str, TextModel],
) -> None:
    plan = build_tp_plan(models["masked-lm"], sequence_parallel=True)
    assert type(plan[f"{FIRST}.attention.self"]) is PrepareInput
    for part in ("query", "key", "value"):
        assert not plan[f"{FIRST}.attention.self.{part}"].prepare_input
    assert plan[f"{FIRST}.intermediate.dense"].prepare_input
    assert moves(plan, f"{FIRST}.attention.self")[0] is all_gather


def test_norms_are_split_only_with_sequence_parallelism(models: dict[str, TextModel]) -> None:
    for sequence_parallel in (False, True):
        plan = build_tp_plan(models["masked-lm"], sequence_parallel)
        norms = [name for name, style in plan.items() if isinstance(style, SequenceParallelNorm)]
        assert len(norms) == (4 if sequence_parallel else 0)
        assert plan[f"{FIRST}.output.dense"].sequence_parallel == sequence_parallel
        assert ("sp_entry" in plan) == ("sp_exit" in plan) == sequence_parallel


def test_a_layer_that_computes_cls_alone_leaves_chunks_behind(
    models: dict[str, TextModel],
) -> None:
    plan = build_tp_plan(models["classifier"], sequence_parallel=True)
    assert moves(plan, f"{LAST}.tp_input")[0] is all_gather
    assert moves(plan, f"{LAST}.tp_cls") == (identity, keep_rank0)
    assert not plan[f"{LAST}.output.dense"].sequence_parallel
    assert f"{LAST}.output.LayerNorm" not in plan and f"{LAST}.attention.self" not in plan
    assert plan[f"{FIRST}.output.dense"].sequence_parallel
    assert "sp_exit" not in plan, "one whole position goes out"
    assert moves(plan, "sp_entry") == (local_chunk, all_gather)


def test_ends_belong_to_the_stages_that_have_them(models: dict[str, TextModel]) -> None:
    model = models["masked-lm"]
    first, last = (
        build_tp_plan(model.extract_stage(layers), sequence_parallel=True)
        for layers in (range(1), range(1, 2))
    )
    table = "net.bert.embeddings.word_embeddings"
    assert isinstance(first[table], VocabParallelEmbedding) and table not in last
    assert "sp_entry" in first and "sp_exit" not in first
    assert "sp_exit" in last and "sp_entry" not in last
    assert moves(last, "sp_exit") == (all_gather, local_chunk)
    head = model.lm_head_name
    assert head not in first
    assert moves(last, head)[0] is identity, "the whole sequence has come out before"
    assert {name.startswith(FIRST) for name in first if "layer." in name} == {True}
    assert {name.startswith(LAST) for name in last if "layer." in name} == {True}


def test_a_classifier_head_is_not_split(models: dict[str, TextModel]) -> None:
    plan = build_tp_plan(models["classifier"], sequence_parallel=False)
    assert not [name for name in plan if "classifier" in name or "pooler" in name]
