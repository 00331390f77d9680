"""One process as a rank of many, and tensors without memory."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertForSequenceClassification

from cluster.costmodel.layout import Layout
from trainers.models.bert import TextModel
from trainers.models.packed import PackedTexts
from trainers.planning.fake import (
    SCALAR_VALUE,
    FakeMesh,
    FakeTensors,
    FakeTokenizer,
    cuda_autocast_rules,
    fake_process_group,
)


def build_model() -> TextModel:
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    with torch.device("meta"):
        return TextModel(BertForSequenceClassification(config)).train()


def make_mesh(layout: Layout) -> FakeMesh:
    mesh = FakeMesh.from_layout(layout, "cpu")
    assert isinstance(mesh, FakeMesh)
    return mesh


def test_a_process_is_one_rank_of_many_and_waits_for_none() -> None:
    with fake_process_group(4096, 4095):
        assert (dist.get_rank(), dist.get_world_size()) == (4095, 4096)
        x = torch.ones(2)
        dist.all_reduce(x)
        dist.barrier()
    assert not dist.is_initialized()


def test_a_group_ends_with_an_error_and_two_are_never_at_once() -> None:
    with pytest.raises(ZeroDivisionError), fake_process_group(2, 0):
        _ = 1 // 0
    assert not dist.is_initialized()
    with (
        fake_process_group(2, 0),
        pytest.raises(AssertionError, match="one rank at a time"),
        fake_process_group(2, 1),
    ):
        pass


def test_scalars_of_fake_tensors_are_answered_and_of_real_ones_read() -> None:
    fakes = FakeTensors()
    with fakes.fake_creation():
        made = torch.ones(3)
        assert isinstance(made, FakeTensor)
        assert made.sum().item() == SCALAR_VALUE and isinstance(made.sum().item(), float)
        assert torch.ones(1, dtype=torch.int64).item() == SCALAR_VALUE
    with fakes.readable_fakes():
        assert made.sum().item() == SCALAR_VALUE
        real = torch.full((1,), 7.0)
        assert not isinstance(real, FakeTensor) and real.item() == 7.0


@pytest.mark.parametrize(
    ("layout", "is_wrapped"), [(Layout(), True), (Layout(dp_shard=2, tp=2), False)]
)
def test_a_model_is_laid_out_in_fake_tensors(layout: Layout, is_wrapped: bool) -> None:
    whole = build_model()
    with fake_process_group(4, 3):
        fakes, mesh = FakeTensors(), make_mesh(layout)
        parallel = fakes.parallelize_model(copy.deepcopy(whole), mesh, None)
        (module,) = parallel.wrapped_modules.values()
        assert isinstance(module, DistributedDataParallel) == is_wrapped
        held = [
            each.to_local() if isinstance(each, DTensor) else each
            for _, each in parallel.named_parameters()
        ]
        assert all(isinstance(each, FakeTensor) and each.device.type == "cpu" for each in held)
        share = sum(each.numel() for each in held) / sum(p.numel() for p in whole.parameters())
        assert share == 1 if is_wrapped else 0.2 < share < 0.5
        with fakes.fake_creation():
            for _step in range(2):  # DDP would rebuild its buckets before the second
                ids, keys = torch.ones(1, 16, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
                module(ids, PackedTexts.from_lengths([8, 8], keys=keys)).sum().backward()
        assert all(parameter.grad is not None for _, parameter in parallel.named_parameters())


def test_process_groups_have_the_names_of_their_dimensions() -> None:
    layout = Layout(dp_replicate=2, dp_shard=2, pp=3, tp=2)
    with fake_process_group(24, 0):
        mesh = make_mesh(layout)
        assert mesh.name_of_group((0, 1)) == "tp"
        assert mesh.name_of_group((0, 2)) == "dp_shard"
        assert mesh.name_of_group((0, 4)) == "dp_replicate"
        assert mesh.name_of_group((0, 8, 16)) == "pp"
        assert mesh.name_of_group((0, 16)) == "pp ends"
        assert mesh.name_of_group(tuple(range(24))) == "all"


def test_peers_are_found_while_tensors_are_fake() -> None:
    with fake_process_group(4, 0):
        mesh, fakes = make_mesh(Layout(pp=4)), FakeTensors()
        with fakes.fake_creation():
            assert mesh.stage_peer(1, 0)[0] == 1


def test_norms_and_softmax_are_computed_in_fp32_only_under_the_rules_of_cuda() -> None:
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    functions = (
        lambda: torch.nn.functional.layer_norm(x, (4,)),
        lambda: torch.softmax(x, 1),
    )
    for function in functions:
        with torch.autocast("cpu", torch.bfloat16):
            assert function().dtype == torch.bfloat16
            with cuda_autocast_rules():
                assert function().dtype == torch.float32
            assert function().dtype == torch.bfloat16
        with cuda_autocast_rules():
            assert function().dtype == torch.bfloat16, "without autocast nothing is cast"


def test_a_tokenizer_of_which_the_size_is_known() -> None:
    assert (FakeTokenizer(321).num_tokens, FakeTokenizer(321).pad_id) == (321, 0)
