"""Which devices are here, and what an engine asks of one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.engine import devices
from serving.engine.backends.registry import BACKENDS, reference_backend
from serving.engine.devices import (
    ENGINE_DEVICES,
    DeviceError,
    HostDevice,
    TorchAccelerator,
    find_engine_device,
    open_device,
)
from serving.interface import SERVED_DEVICES
from tests.support.fake_gpu import install_gpu


def test_every_kind_has_an_engine_that_others_are_compared_with() -> None:
    assert tuple(ENGINE_DEVICES) == SERVED_DEVICES
    assert {spec.device for spec in BACKENDS.values()} == set(SERVED_DEVICES)
    for kind in ENGINE_DEVICES:
        assert BACKENDS[reference_backend(kind)].device == kind
    graphs = {name for name in BACKENDS if "graphs" in name}
    assert graphs == {"torch bf16 graphs cuda", "torch fp16 graphs cuda"}


def test_the_cpu_serves_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert find_engine_device() == "cpu"
    assert isinstance(open_device("cpu"), HostDevice)
    with pytest.raises(DeviceError, match=r"device .cuda.: torch .* finds no cuda .*; name cpu"):
        open_device("cuda")
    with pytest.raises(DeviceError, match="no engine for neuron; it has engines for cpu, cuda"):
        open_device("neuron")


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_an_accelerator_serves_where_torch_finds_one(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_gpu(monkeypatch, kind)
    assert find_engine_device() == kind == open_device(kind).kind
    other = "xpu" if kind == "cuda" else "cuda"
    with pytest.raises(DeviceError, match=f"finds no {other} device"):
        open_device(other)


def test_an_old_card_computes_in_fp16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def able() -> set[str]:
        specs = [each for each in BACKENDS.values() if each.device == "cuda"]
        return {each.name for each in specs if each.missing_requirement() is None}

    install_gpu(monkeypatch, capability=(7, 5))
    old = {"torch fp32 cuda", "torch fp16 cuda"}
    assert able() == old
    graphs = BACKENDS["torch fp16 graphs cuda"].missing_requirement()
    assert graphs == "the card has no flash attention"
    assert BACKENDS["torch bf16 cuda"].missing_requirement() == "the card has no fast bf16"
    install_gpu(monkeypatch)
    assert able() == {name for name in BACKENDS if name.endswith(" cuda")}


class FakeTorch:
    """What `TorchAccelerator` calls of torch on a machine with a GPU, and the order of it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        module = SimpleNamespace(
            get_device_name=lambda: "A card",
            memory_reserved=lambda: 123,
            set_per_process_memory_fraction=lambda share: self.log.append(("share", share)),
        )
        patch.setattr(torch, "get_device_module", lambda kind: module)
        patch.setattr(torch.accelerator, "current_device_index", lambda: 1)
        patch.setattr(torch, "set_float32_matmul_precision", self.log.append)
        empty = torch.empty

        def allocate(size: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
            self.log.append(("pinned" if pin_memory else "pageable", size))
            return empty(size, dtype=dtype)

        patch.setattr(torch, "empty", allocate)


def test_an_accelerator_has_a_name_pinned_memory_and_no_tf32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeTorch(monkeypatch)
    device = TorchAccelerator("cuda")
    assert (device.name, device.torch_device) == ("A card", torch.device("cuda", 1))
    assert len(device.allocate_staging(8)) == 8 and device.memory_bytes() == 123
    TorchAccelerator("mps").allocate_staging(8)
    assert fake.log == ["highest", ("pinned", 8), "highest", ("pageable", 8)]
    devices.limit_device_memory("cuda", 0.25)
    assert fake.log[-1] == ("share", 0.25)


def test_a_graph_is_captured_after_a_first_run_beside_other_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeTorch(monkeypatch)

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = str(name)

        def wait_stream(self, other: "Stream") -> None:
            fake.log.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self) -> None:
            fake.log.append("replay")

    class Block:
        def __init__(self, *given: Any, **named: Any) -> None:
            self.word = "capture" if named else "stream"
            fake.log.append((self.word, named.get("capture_error_mode", "")))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            fake.log.append(f"end {self.word}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", Block)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: fake.log.append("pool"))
    monkeypatch.setattr(torch.cuda, "graph", Block)
    outputs = torch.zeros(1)

    def compute() -> torch.Tensor:
        fake.log.append("compute")
        return outputs

    replay, written = TorchAccelerator("cuda").capture(compute)
    replay()
    assert written is outputs
    assert fake.log == [
        "highest", "side waits for main", ("stream", ""), "compute", "end stream",
        "main waits for side", "pool", ("capture", "thread_local"), "compute", "end capture",
        "replay",
    ]  # fmt: skip


def test_the_stand_in_computes_again_into_the_same_tensor() -> None:
    source = torch.tensor([1.0])
    replay, outputs = HostDevice("cuda").capture(lambda: source * 2)
    source.fill_(4)
    replay()
    assert outputs.tolist() == [8.0]
    assert HostDevice("cuda").torch_device.type == "cpu"
