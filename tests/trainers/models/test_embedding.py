"""A table whose gradient is added row by row: the gradient that autograd gives."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainers.models.embedding import RowGradEmbedding
from trainers.planning.fake import fake_process_group

IDS = torch.tensor([[1, 2, 2, 0], [3, 2, 0, 0]])


def make_tables(padding: int | None = 0) -> tuple[nn.Embedding, RowGradEmbedding]:
    torch.manual_seed(0)
    plain = nn.Embedding(6, 3, padding_idx=padding)
    return plain, RowGradEmbedding.from_embedding(copy.deepcopy(plain))


def weighted(rows: Tensor) -> Tensor:
    return (rows * torch.arange(1.0, rows.numel() + 1).view(rows.shape)).sum()


@pytest.mark.parametrize("padding", [None, 0])
def test_rows_and_gradients_are_those_of_a_plain_table(padding: int | None) -> None:
    plain, table = make_tables(padding)
    for ids in (IDS, IDS.flip(1)):  # the second micro-batch is added to the first
        assert torch.equal(table(ids), plain(ids))
        weighted(plain(ids)).backward()
        weighted(table(ids)).backward()
        torch.testing.assert_close(table.weight.grad, plain.weight.grad)
    assert plain.weight.grad is not None
    assert bool(plain.weight.grad[0].any()) == (padding is None)


def test_the_next_step_begins_at_zero_in_the_same_memory() -> None:
    _, table = make_tables()
    weighted(table(IDS)).backward()
    assert table.weight.grad is not None
    first, memory = table.weight.grad.clone(), table.weight.grad.data_ptr()
    table.zero_grad()
    assert table.weight.grad is None
    weighted(table(IDS)).backward()
    assert table.weight.grad is not None and table.weight.grad.data_ptr() == memory
    assert torch.equal(table.weight.grad, first)


def test_the_parameter_is_shared_with_the_table_that_is_wrapped() -> None:
    plain, _ = make_tables()
    table = RowGradEmbedding.from_embedding(plain)
    assert table.weight is plain.weight and table.padding_idx == 0


def test_a_tied_table_leaves_its_gradient_to_autograd() -> None:
    plain, table = make_tables()
    table.row_gradients = False
    (weighted(table(IDS)) + table.weight.sum()).backward()
    (weighted(plain(IDS)) + plain.weight.sum()).backward()
    assert torch.equal(table.weight.grad, plain.weight.grad)


def test_what_needs_no_gradient_has_none() -> None:
    _, table = make_tables()
    with torch.no_grad():
        assert not table(IDS).requires_grad
    assert not table.requires_grad_(False)(IDS).requires_grad


def test_only_rows_that_some_rank_looked_up_are_averaged() -> None:
    _, table = make_tables(None)
    table.weight.grad = torch.ones(6, 3)
    with fake_process_group(4, 2):  # of which the others add nothing
        table.average_gradient(torch.tensor([1, 4]))
    assert table.weight.grad[:, 0].tolist() == [1, 0.25, 1, 1, 0.25, 1]


@pytest.mark.parametrize(("rank", "start", "stop"), [(0, 0, 3), (1, 3, 5)])
def test_a_rank_looks_up_its_rows_and_leaves_zeros_for_the_others(
    rank: int, start: int, stop: int
) -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(5, 3, padding_idx=3)
    table = RowGradEmbedding.from_embedding(copy.deepcopy(plain))
    with fake_process_group(2, rank):
        mesh = init_device_mesh("cpu", (2,))
        held = distribute_tensor(table.weight.detach(), mesh, [Shard(0)], src_data_rank=None)
        table.weight = nn.Parameter(held)
        ids = torch.tensor([[0, 2, 3, 4, 4]])
        is_local = (ids >= start) & (ids < stop)
        found, expected = table(ids), plain(ids) * is_local[..., None]
        torch.testing.assert_close(found, expected)
        weighted(found).backward()
        weighted(expected).backward()
        grad = table.weight.grad
        assert isinstance(grad, DTensor) and plain.weight.grad is not None
        torch.testing.assert_close(grad.to_local(), plain.weight.grad[start:stop])
