"""What an accelerator runs, run on the CPU: the outputs of the reference, whatever the batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serving.engine.backends import accelerator
from serving.engine.backends.accelerator import (
    LADDER,
    LONGEST,
    AcceleratorBackend,
    Staging,
    num_slots,
)
from serving.engine.backends.backend import OverlappingBackend
from serving.engine.backends.pytorch import EagerBackend
from serving.engine.devices import HostDevice
from serving.engine.networks import load_network
from tests.support.tiny_bundle import LABELS, write_linear_bundle, write_tiny_bundle
from tests.support.varlen import use_varlen_attention
from trainers.models.card import read_card
from trainers.models.families import position_ids
from trainers.models.packed import PackedBatch

GRAPHS = pytest.mark.parametrize("graphs", [False, True])
BATCHES = [[9, 2, 16], [3], [16] * 4, [5] * 12, [2] * 15, [16] * 130]  # of texts, in tokens


@pytest.fixture(params=LABELS)
def bundle(request: pytest.FixtureRequest, tiny_bert: Path, tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle", tiny_bert, request.param)


@pytest.fixture
def small_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "LADDER", (64, 128))


def batches(bundle: Path) -> list[PackedBatch]:
    """Batches of every shape; of a masked language model every text but the second has masks."""
    config = json.loads((bundle / "config.json").read_text())
    rng, made = np.random.default_rng(0), []
    for lengths in BATCHES:
        rows = [rng.integers(5, config["vocab_size"], length) for length in lengths]
        starts = np.cumsum((0, *lengths[:-1]))
        reads = None
        if read_card(bundle).task == "masked-lm":
            reads = np.concatenate([starts[:1], starts[2:] + 1, starts[:1] + lengths[0] - 1])
        made.append(PackedBatch.from_rows(rows, [position_ids(config, row) for row in rows], reads))
    return made


def reference(bundle: Path, dtype: torch.dtype = torch.float32) -> EagerBackend:
    return EagerBackend(load_network(bundle, read_card(bundle)), "torch fp32", 1, dtype)


def accelerated(bundle: Path, **options: Any) -> AcceleratorBackend:
    network = load_network(bundle, read_card(bundle))
    return AcceleratorBackend(network, "torch fp32 cuda", HostDevice("cuda"), **options)


@GRAPHS
def test_end_to_end_it_computes_what_the_reference_computes(
    bundle: Path, graphs: bool, small_ladder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_varlen_attention(monkeypatch)
    backend, expected = accelerated(bundle, graphs=graphs), reference(bundle)
    for packed in batches(bundle):
        np.testing.assert_allclose(backend.run(packed), expected.run(packed), atol=2e-6)


def test_without_flash_attention_it_computes_the_same_in_rows(bundle: Path) -> None:
    backend, expected = accelerated(bundle, graphs=True), reference(bundle)
    for packed in batches(bundle):
        np.testing.assert_allclose(backend.run(packed), expected.run(packed), atol=2e-6)


@pytest.mark.parametrize("bundle", ["embedding"], indirect=True)
def test_half_precision_is_close_answers_in_float32_and_weighs_half(
    bundle: Path, small_ladder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_varlen_attention(monkeypatch)
    backend, expected = accelerated(bundle, dtype=torch.bfloat16, graphs=True), reference(bundle)
    for packed in batches(bundle):
        found = backend.run(packed)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.run(packed), atol=0.05)
    assert 2 * backend.num_bytes <= expected.num_bytes + 1024  # buffers of integers stay


@pytest.mark.parametrize("bundle", ["classification"], indirect=True)
def test_two_batches_may_be_under_way(
    bundle: Path, small_ladder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_varlen_attention(monkeypatch)
    backend, expected = accelerated(bundle, graphs=True), reference(bundle)
    assert isinstance(backend, OverlappingBackend)
    made = batches(bundle)
    before = backend.start(made[-1])
    for packed, earlier in zip(made, [made[-1], *made], strict=False):
        wait = backend.start(packed)
        np.testing.assert_allclose(before(), expected.run(earlier), atol=2e-6)
        before = wait


def test_a_linear_model_computes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_varlen_attention(monkeypatch)
    backend = accelerated(write_linear_bundle(tmp_path / "bundle", [2.0, -1.0]))
    rows = [np.array([3, 1], np.float32), np.array([-1, 4], np.float32)]
    packed = PackedBatch.from_rows(rows, [np.arange(2)] * 2)
    assert backend.run(packed).tolist() == [[5.0], [-6.0]]


class Shapes(nn.Module):
    """Remembers what it was given; answers with the token and position that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[int, int, tuple[int, ...]]] = []

    def forward(
        self,
        ids: Tensor,
        texts: Tensor,
        positions: Tensor,
        reads: Tensor,
        lengths: tuple[int, ...] = (),
    ) -> Tensor:
        self.given.append((len(ids), len(reads), lengths))
        assert len(ids) == len(texts) == len(positions)
        return torch.stack([ids[reads], positions[reads]], dim=1).float()


class CountingDevice(HostDevice):
    """Counts replays."""

    num_replays = 0

    def capture(self, compute: Any) -> Any:
        replay, outputs = super().capture(compute)

        def count() -> None:
            self.num_replays += 1
            replay()

        return count, outputs


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ([1], 64),
        ([30, 34], 64),
        ([30, 35], 128),
        ([9] * 7, 64),
        ([8] * 8, None),  # no slot is left for the text that fills up
        ([512], 512),
        ([512, 1], 640),
        ([512] * 3 + [1], 1792),
        ([512] * 4, 2048),
        ([512] * 4 + [1], None),
        ([513], None),  # longer than flash attention was captured for
        ([17] * 100, 1792),
    ],
)
def test_a_batch_is_filled_up_to_the_next_graph(
    lengths: list[int], size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_varlen_attention(monkeypatch)
    network, device = Shapes(), CountingDevice()
    backend = AcceleratorBackend(network, "torch fp16 graphs cuda", device, graphs=True)
    assert sorted(number for number, *_ in network.given) == list(LADDER)
    for _, reads, bounds in network.given:
        assert reads == len(bounds) and max(bounds) <= LONGEST
    network.given.clear()
    rows = [np.full(length, 7 + text) for text, length in enumerate(lengths)]
    packed = PackedBatch.from_rows(rows, [np.arange(length) + 2 for length in lengths])
    expected = [[7.0 + text, 2.0] for text in range(len(lengths))]
    assert backend.run(packed).tolist() == expected
    assert device.num_replays == (size is not None)
    tokens, reads, bounds = network.given[0]
    if size is None:
        assert (tokens, reads, bounds) == (sum(lengths), len(lengths), tuple(lengths))
    else:
        assert (tokens, reads) == (size, num_slots(size))


def test_no_step_of_the_ladder_is_filled_by_a_text_too_long() -> None:
    steps = np.diff((0, *LADDER))
    assert (steps > 0).all() and max(steps) <= LONGEST
    assert LADDER[-1] == 2048


class LateDevice(HostDevice):
    """Records what is waited for, in order."""

    def __init__(self) -> None:
        super().__init__("cuda")
        self.log: list[str] = []

    def allocate_staging(self, num_bytes: int) -> Tensor:
        self.log.append(f"allocate {num_bytes}")
        return super().allocate_staging(num_bytes)

    def record(self) -> Any:
        device, number = self, sum(word.startswith("record") for word in self.log)
        self.log.append(f"record {number}")

        class Mark:
            def synchronize(self) -> None:
                device.log.append(f"wait {number}")

        return Mark()


def test_staging_memory_is_kept_grows_and_is_not_written_while_it_is_read() -> None:
    device = LateDevice()
    staging = Staging(device)
    arrays = [np.arange(3), np.array([1.5, 2.5], np.float32), np.arange(6).reshape(2, 3)]
    for _ in range(2):
        found = staging.upload(arrays)
        assert [each.tolist() for each in found] == [each.tolist() for each in arrays]
        assert [each.dtype for each in found] == [torch.int64, torch.float32, torch.int64]
        wait = staging.download(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16))
        assert wait().tolist() == [[1.0, 2.0]]
    staging.upload([np.arange(100)])
    assert device.log == [
        "allocate 0", "allocate 192", "record 0", "allocate 16", "record 1", "wait 1",
        "wait 1", "record 2", "record 3", "wait 3", "wait 3", "allocate 1600", "record 4",
    ]  # fmt: skip
