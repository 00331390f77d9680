"""Recomputed layers give the same outputs and gradients, and recompute what they should."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.models.activation_checkpointing import checkpoint_layer
from trainers.models.dropout import DropoutKeys, KeyedDropout
from trainers.models.packed import PackedTexts


class Layer(nn.Module):
    """A product, a GELU and a dropout keyed by sample."""

    def __init__(self, keys: DropoutKeys) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(8, 8), KeyedDropout(0.5, 0, keys)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = hidden if mask is None else hidden * mask
        return self.dropout(nn.functional.gelu(self.linear(hidden)))


class Counts(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[function.name().removeprefix("aten::").partition(".")[0]] += 1
        return function(*args, **(kwargs or {}))


TEXTS = PackedTexts.from_lengths([5, 4, 3], keys=torch.tensor([11, 22, 33]))


@pytest.fixture
def keys() -> DropoutKeys:
    keys = DropoutKeys()
    keys.packed = TEXTS
    return keys


def make_input() -> Tensor:
    return torch.linspace(-2, 2, 12 * 8).view(1, 12, 8).requires_grad_()


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_are_those_of_the_layer(
    keys: DropoutKeys, mode: str, masked: bool
) -> None:
    layer, plain = Layer(keys), Layer(keys)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0] * 3)[:, None] if masked else None
    one, other = make_input(), make_input()
    expected, found = plain(one, mask), checkpoint_layer(layer, keys, mode, other, mask)
    assert torch.equal(found, expected)
    # A pipeline computes another micro-batch before this one's backward.
    keys.packed = later = PackedTexts.from_lengths([12], keys=torch.tensor([4]))
    expected.sum().backward()
    found.sum().backward()
    assert keys.packed is later
    assert one.grad is not None and other.grad is not None
    torch.testing.assert_close(other.grad, one.grad)
    torch.testing.assert_close(layer.linear.weight.grad, plain.linear.weight.grad)


@pytest.mark.parametrize(("mode", "products"), [("full", 1), ("selective", 0)])
def test_only_a_full_recomputation_multiplies_again(
    keys: DropoutKeys, mode: str, products: int
) -> None:
    output = checkpoint_layer(Layer(keys), keys, mode, make_input(), None)
    with Counts() as counts:
        output.sum().backward()
    assert counts.calls["addmm"] == products
    assert counts.calls["gelu"] == 1, "what is cheap is computed again either way"
