"""Dropout keyed by sample: the right rate, and the same mask wherever a sample is computed."""

import numpy as np
import pytest
import torch
from torch import nn

from trainers.data.microbatch import sample_keys
from trainers.models import dropout as dropout_module
from trainers.models.dropout import DropoutKeys, KeyedDropout, use_keyed_dropout
from trainers.models.packed import PackedTexts

CPU = torch.device("cpu")


def masks(p: float, shape: tuple[int, ...], rows: np.ndarray, site: int = 0) -> torch.Tensor:
    """Of hidden states [texts, tokens, channels], laid end to end, or of attention weights."""
    keys = DropoutKeys()
    of_rows = torch.from_numpy(sample_keys(7, 1, rows))
    dropout, whole = KeyedDropout(p, site, keys), torch.Size((len(rows), *shape))
    keys.packed = PackedTexts.from_lengths([shape[0]] * len(rows), keys=of_rows)
    if len(shape) == 3:
        return dropout.keep_mask(whole, CPU)
    packed = torch.Size((1, len(rows) * shape[0], shape[1]))
    return dropout.keep_mask(packed, CPU).view(whole)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_is_right_and_nothing_is_correlated(p: float) -> None:
    """Every mean and neighbour correlation within 5 standard errors, of 1.5 million draws."""
    kept = masks(p, (64, 384), np.arange(64)).double() - (1 - p)
    variance = p * (1 - p)
    assert abs(kept.mean()) < 5 * (variance / kept.numel()) ** 0.5
    for lane in (kept[..., 0::2], kept[..., 1::2]):
        assert abs(lane.mean()) < 5 * (variance / lane.numel()) ** 0.5
    other_site = masks(p, (64, 384), np.arange(64), site=1).double() - (1 - p)
    pairs = [
        (kept[1:], kept[:-1]),
        (kept[:, 1:], kept[:, :-1]),
        (kept[..., 1:], kept[..., :-1]),
        (kept[..., 2:], kept[..., :-2]),
        (kept, other_site),
    ]
    for left, right in pairs:
        correlation = (left * right).mean() / variance
        assert abs(correlation) < 5 / left.numel() ** 0.5


def test_a_text_keeps_its_mask_whatever_lies_beside_it() -> None:
    rows, lengths = np.array([5, 900, 3, 77]), [20, 1, 11, 4]
    keys = DropoutKeys()
    of_rows = torch.from_numpy(sample_keys(7, 1, rows))
    keys.packed = PackedTexts.from_lengths(lengths, keys=of_rows)
    dropout = KeyedDropout(0.3, 2, keys)
    together = dropout.keep_mask(torch.Size((1, 36, 32)), CPU)[0]
    first = dropout.keep_mask(torch.Size((1, 4, 32)), CPU)[0]  # of the tokens that are read
    pooled = dropout.keep_mask(torch.Size((4, 32)), CPU)
    halves = []
    for index in range(2):
        dropout.shard = index, 2
        halves.append(dropout.keep_mask(torch.Size((1, 18, 32)), CPU)[0])
    assert torch.equal(torch.cat(halves), together), "as sequence parallelism shards it"
    for part, row, length in zip(together.split(lengths), rows, lengths, strict=True):
        assert torch.equal(part, masks(0.3, (length, 32), np.array([row]), site=2)[0])
    assert torch.equal(first, torch.stack([part[0] for part in together.split(lengths)]))
    assert torch.equal(pooled, first)


def drop_both_ways(lengths: list[int]) -> list[torch.Tensor]:
    """Outputs and gradients of hidden states, of the tokens that are read, and of a shard."""
    keys, found = DropoutKeys(), []
    of_rows = torch.from_numpy(sample_keys(3, 1, np.arange(len(lengths))))
    keys.packed = PackedTexts.from_lengths(lengths, keys=of_rows)
    for shard, tokens in (((0, 1), sum(lengths)), ((0, 1), len(lengths)), ((1, 2), 18)):
        x = torch.linspace(-3, 3, tokens * 31).view(1, tokens, 31).requires_grad_()
        dropout = KeyedDropout(0.3, 5, keys)
        dropout.shard = shard
        dropped = dropout(x)
        dropped.sum().backward()
        found += [dropped.detach(), x.grad]
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # the compiler's, about itself
@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kernel_drops_what_tables_of_hashes_drop(
    monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    lengths = [20, 1, 11, 4]
    expected = drop_both_ways(lengths)
    monkeypatch.setattr(dropout_module, "is_fused_on", lambda _: True)
    if not is_compiled:
        monkeypatch.setattr(dropout_module, "_fused_drop", lambda: dropout_module.drop_tokens)
    for one, other in zip(expected, drop_both_ways(lengths), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.slow
def test_a_kernel_is_not_compiled_again_for_other_numbers_of_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop = torch.compile(dropout_module.drop_tokens, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for tokens in (40, 17, 256, 33, 90):
        keys = torch.arange(tokens, dtype=torch.int32)
        x = torch.ones(1, tokens, 32, requires_grad=True)
        drop(x, keys, torch.arange(tokens), 0.1).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_sample_keeps_its_mask_in_any_batch_and_any_padding() -> None:
    rows = np.array([5, 900, 3, 77])
    whole = masks(0.3, (20, 32), rows)
    alone = masks(0.3, (11, 32), rows[2:3])
    assert torch.equal(whole[2:3, :11], alone)
    heads = masks(0.3, (4, 20, 19), rows)
    assert torch.equal(heads[1:2, :, :9, :7], masks(0.3, (4, 9, 7), rows[1:2]))


def test_a_counter_that_grew_is_the_one_that_was_asked_for_at_once() -> None:
    keys = DropoutKeys()
    small = keys.position_hashes(torch.Size((5, 8)), CPU).clone()
    assert torch.equal(keys.position_hashes(torch.Size((9, 8)), CPU)[:5], small)


def test_keys_differ_by_seed_epoch_and_row() -> None:
    rows = np.arange(1000)
    keys = np.concatenate([sample_keys(s, e, rows) for s in (0, 1) for e in (0, 1)])
    assert len(np.unique(keys)) == 4000
    assert np.array_equal(sample_keys(3, 2, rows)[17:18], sample_keys(3, 2, np.array([17])))


def test_expectation_and_gradient_are_those_of_dropout() -> None:
    keys = DropoutKeys()
    of_rows = torch.from_numpy(sample_keys(0, 0, np.arange(256)))
    keys.packed = PackedTexts.from_lengths([1] * 256, keys=of_rows)
    dropout = KeyedDropout(0.2, 0, keys)
    x = torch.ones(256, 64, requires_grad=True)
    y = dropout(x)
    assert set(y.unique().tolist()) == {0.0, 1.25}
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout.eval()(x), x)


def test_every_dropout_of_a_model_is_replaced_and_wants_keys() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.1)))
    use_keyed_dropout(model)
    found = [module for module in model.modules() if isinstance(module, KeyedDropout)]
    assert [(d.p, d.site) for d in found] == [(0.5, 0), (0.1, 1)]
    with pytest.raises(RuntimeError, match="needs the keys of its samples"):
        model(torch.ones(2, 4))
