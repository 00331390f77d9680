"""A machine with a GPU, pretended: engines for cuda compute on the CPU by the code of a GPU."""

from types import SimpleNamespace

import pytest
import torch

from serving.engine import devices
from serving.engine.devices import HostDevice
from tests.support.varlen import use_varlen_attention

CARD = "NVIDIA H200"


class FakeGPU(HostDevice):
    """The CPU under the name of a card."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.name = CARD

    def memory_bytes(self) -> int:
        """As `EngineDevice.memory_bytes`."""
        return 5 << 20


def install_gpu(
    patch: pytest.MonkeyPatch, kind: str = "cuda", capability: tuple[int, int] = (9, 0)
) -> None:
    """Let torch find a device of `kind`, of that compute capability."""
    patch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(kind))
    patch.setattr(torch.accelerator, "device_count", lambda: 2)
    named = SimpleNamespace(get_device_name=lambda: CARD)
    patch.setattr(torch, "get_device_module", lambda _: named)
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    patch.setattr(devices, "TorchAccelerator", FakeGPU)
    use_varlen_attention(patch)
