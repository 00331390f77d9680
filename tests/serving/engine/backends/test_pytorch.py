"""The torch backends: the same outputs in any form, and their weight in bytes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serving.engine.backends.pytorch import (
    WARM_UP,
    CompiledBackend,
    EagerBackend,
    parameter_bytes,
)
from trainers.models.packed import PackedBatch

ROWS = [np.array([3, 1, 4]), np.array([1, 5])]
PACKED = PackedBatch.from_rows(ROWS, [np.arange(3), np.arange(2)])


class Sums(nn.Module):
    """The mean vector of each text: by its length, or by its padded rows where there are any."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vectors = nn.Embedding(128, 4)
        self.register_buffer("shift", torch.ones(4))
        self.shapes: list[tuple[int, int]] = []

    def forward(
        self,
        ids: Tensor,
        texts: Tensor,
        positions: Tensor,
        reads: Tensor,
        *fold: Tensor,
        lengths: tuple[int, ...] = (),
    ) -> Tensor:
        self.shapes.append((len(ids), len(reads)))
        hidden = self.vectors(ids) + self.shift
        if not fold:
            return torch.stack([part.mean(dim=0) for part in hidden.split(lengths)])
        grid, owners, _ = fold
        masks = [(owners == text)[..., None] for text in range(len(reads))]
        return torch.stack([(hidden[grid] * mask).sum(dim=(0, 1)) / mask.sum() for mask in masks])


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How `torch.compile` was called; it compiles nothing, for no compiler may be here."""
    calls: list[dict[str, Any]] = []

    def compile_nothing(network: nn.Module, **settings: Any) -> nn.Module:
        calls.append(settings)
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return calls


def expected() -> np.ndarray:
    vectors = Sums().vectors.weight.detach().numpy() + 1
    return np.stack([vectors[row].mean(axis=0) for row in ROWS])


def test_eager_outputs_are_the_networks_in_float32() -> None:
    backend = EagerBackend(Sums(), "torch fp32", 1)
    found = backend.run(PACKED)
    assert (backend.name, found.dtype) == ("torch fp32", np.float32)
    np.testing.assert_allclose(found, expected(), rtol=1e-6)


def test_bf16_answers_in_float32_and_weighs_half() -> None:
    backend = EagerBackend(Sums(), "torch bf16", 1, torch.bfloat16)
    found = backend.run(PACKED)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(), atol=0.02)
    assert not np.array_equal(found, expected())
    assert backend.num_bytes * 2 == EagerBackend(Sums(), "torch fp32", 1).num_bytes


def test_a_compiled_network_is_given_padded_rows(uncompiled: list[dict[str, Any]]) -> None:
    backend = CompiledBackend(Sums(), "torch compiled", 1)
    np.testing.assert_allclose(backend.run(PACKED), expected(), rtol=1e-6)
    assert uncompiled == [{"dynamic": True}]
    assert backend.num_bytes == parameter_bytes(Sums())


def test_it_is_compiled_for_one_text_and_for_several_before_the_first_request(
    uncompiled: list[dict[str, Any]],
) -> None:
    network = Sums()
    CompiledBackend(network, "torch compiled", 1)
    assert network.shapes == [(sum(lengths), len(lengths)) for lengths in WARM_UP]
    assert {min(number, 2) for _, number in network.shapes} == {1, 2}
    assert all(min(lengths) > 1 for lengths in WARM_UP)  # torch would specialize on a size of 1


def test_the_process_computes_with_the_threads_it_is_given() -> None:
    EagerBackend(Sums(), "torch fp32", 2)
    assert torch.get_num_threads() == 2
    EagerBackend(Sums(), "torch fp32", 1)
    assert torch.get_num_threads() == 1


def test_tied_parameters_weigh_once_and_buffers_too() -> None:
    network = nn.Module()
    network.one, network.two = nn.Linear(3, 5), nn.Linear(3, 5, bias=False)
    network.two.weight = network.one.weight
    network.register_buffer("levels", torch.zeros(7, dtype=torch.int8))
    assert parameter_bytes(network) == 4 * (3 * 5 + 5) + 7
