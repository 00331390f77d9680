"""Modules of one rank of two: their part of the weights, of the outputs and of the gradients."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import parallelize_module

from tests.support.ranks import spawn_ranks
from trainers.distributed.collectives import all_gather, local_chunk
from trainers.distributed.dtensor import reduce_partial_gradients
from trainers.distributed.tensor_parallel import (
    ColwiseParallel,
    Redistribute,
    RowwiseParallel,
    SequenceParallelNorm,
    VocabParallelEmbedding,
)
from trainers.models.embedding import RowGradEmbedding
from trainers.planning.fake import fake_process_group

TORCH_SEED = 0


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two ranks, of which this is the second; sums over them are those of this one."""
    with fake_process_group(2, 1):
        yield init_device_mesh("cpu", (2,))


def make(module: type[nn.Module], *sizes: int) -> Any:
    torch.manual_seed(TORCH_SEED)
    return module(*sizes)


def placements(module: nn.Module) -> dict[str, Any]:
    return {
        name: parameter.placements[0]
        for name, parameter in module.named_parameters()
        if isinstance(parameter, DTensor)
    }


def test_a_column_parallel_layer_computes_its_outputs(mesh: DeviceMesh) -> None:
    plain, linear, x = make(nn.Linear, 4, 6), make(nn.Linear, 4, 6), torch.randn(2, 3, 4)
    parallelize_module(linear, mesh, ColwiseParallel(sequence_parallel=False))
    assert placements(linear) == {"weight": Shard(0), "bias": Shard(0)}
    torch.testing.assert_close(linear(x), plain(x)[..., 3:])


def test_a_row_parallel_layer_adds_its_bias_once_after_the_sum(mesh: DeviceMesh) -> None:
    plain, linear, x = make(nn.Linear, 4, 6), make(nn.Linear, 4, 6), torch.randn(2, 3, 2)
    parallelize_module(linear, mesh, RowwiseParallel(sequence_parallel=False))
    assert placements(linear) == {"weight": Shard(1), "bias": Replicate()}
    torch.testing.assert_close(linear(x), F.linear(x, plain.weight[:, 2:]) + plain.bias)
    linear(x).sum().backward()
    assert not linear.bias.grad.placements[0].is_partial(), "all ranks compute the same"


def test_with_sequence_parallelism_sequences_grow_on_the_way_in_and_shrink_out(
    mesh: DeviceMesh,
) -> None:
    wide, narrow = make(nn.Linear, 4, 6), make(nn.Linear, 6, 4)
    parallelize_module(wide, mesh, ColwiseParallel(sequence_parallel=True))
    parallelize_module(narrow, mesh, RowwiseParallel(sequence_parallel=True))
    grown = wide(torch.randn(2, 5, 4))
    assert grown.shape == (2, 10, 3)
    shrunk = narrow(grown)
    assert shrunk.shape == (2, 5, 4)
    shrunk.sum().backward()
    assert narrow.bias.grad.placements[0].is_partial(), "of this rank's positions alone"


def test_a_layer_whose_input_is_prepared_by_another_takes_it_as_it_is(mesh: DeviceMesh) -> None:
    linear = make(nn.Linear, 4, 6)
    parallelize_module(linear, mesh, ColwiseParallel(sequence_parallel=True, prepare_input=False))
    assert linear(torch.randn(2, 5, 4)).shape == (2, 5, 3)


def test_a_norm_of_a_chunk_knows_that_its_gradient_is_a_part(mesh: DeviceMesh) -> None:
    plain, norm, x = make(nn.LayerNorm, 4), make(nn.LayerNorm, 4), torch.randn(2, 3, 4)
    parallelize_module(norm, mesh, SequenceParallelNorm())
    assert placements(norm) == {"weight": Replicate(), "bias": Replicate()}
    torch.testing.assert_close(norm(x), plain(x))
    norm(x).sum().backward()
    assert all(parameter.grad.placements[0].is_partial() for parameter in norm.parameters())


def test_layers_without_a_bias_and_frozen_ones_stay_so(mesh: DeviceMesh) -> None:
    linear = nn.Linear(4, 6, bias=False).requires_grad_(False)
    parallelize_module(linear, mesh, ColwiseParallel(sequence_parallel=False))
    assert linear.bias is None and not linear.weight.requires_grad


def test_an_embedding_keeps_its_rows_of_the_vocabulary(mesh: DeviceMesh) -> None:
    plain = make(nn.Embedding, 5, 2)
    table = RowGradEmbedding.from_embedding(copy.deepcopy(plain))
    parallelize_module(table, mesh, VocabParallelEmbedding())
    assert placements(table) == {"weight": Shard(0)}
    ids = torch.tensor([[0, 2, 3, 4]])
    # The first rank has ids 0 to 2, whose rows are left to it.
    torch.testing.assert_close(table(ids), plain(ids) * torch.tensor([0, 0, 1, 1])[:, None])


class Block(nn.Module):
    """A norm, a wide layer and a narrow one, between a whole sequence and a whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.exit = nn.Identity(), nn.Identity()
        self.norm, self.wide, self.narrow = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        return self.exit(x + self.narrow(torch.tanh(self.wide(self.norm(x)))))


@pytest.mark.multiprocess
def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    spawn_ranks(_compare, (tmp_path,), nprocs=2)


def _compare(rank: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for chunked in (False, True):
        plain, split = make(Block), make(Block)
        plan: dict[str, Any] = {
            "wide": ColwiseParallel(chunked), "narrow": RowwiseParallel(chunked),
        }  # fmt: skip
        if chunked:
            plan |= {
                "norm": SequenceParallelNorm(),
                "entry": Redistribute(local_chunk, all_gather),
                "exit": Redistribute(all_gather, local_chunk),
            }
        parallelize_module(split, mesh, plan)
        torch.manual_seed(TORCH_SEED)
        value = torch.randn(2, 8, 4)
        one, other = value.clone().requires_grad_(), value.clone().requires_grad_()
        torch.testing.assert_close(split(other), plain(one))
        plain(one).square().sum().backward()
        split(other).square().sum().backward()
        torch.testing.assert_close(other.grad, one.grad)
        reduce_partial_gradients(split.parameters())
        for (name, found), expected in zip(
            split.named_parameters(), plain.parameters(), strict=True
        ):
            grad = found.grad.full_tensor() if isinstance(found.grad, DTensor) else found.grad
            torch.testing.assert_close(grad, expected.grad, msg=name)
    dist.destroy_process_group()
