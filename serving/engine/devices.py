"""The devices that engines compute on, behind one small interface.

Pinned memory, events, graphs and the memory of a device are here alone. `HostDevice` computes on
the CPU and stands in for an accelerator, so that tests run the very code that an accelerator runs.
Rows other than cpu have not run on hardware.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cluster.errors import BerthaError
from trainers.tracking.provenance import processor_name

CPU = "cpu"


class DeviceError(BerthaError):
    """A device that is not here; the message names it and the way out."""


class Completion(Protocol):
    """What was asked of a device until now."""

    def synchronize(self) -> None:
        """Wait until the device has done it."""


class EngineDevice(Protocol):
    """A device as an engine needs it.

    kind: of `ENGINE_DEVICES`. name: of the card. torch_device: where tensors are.
    """

    kind: str
    name: str
    torch_device: torch.device

    def allocate_staging(self, num_bytes: int) -> Tensor:
        """Return [num_bytes] uint8 of host memory that the device copies from and to by itself."""

    def record(self) -> Completion:
        """Return the completion of all that was asked of the device until now."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """Record `compute` as a graph; return what replays it, and the tensor it writes.

        Its inputs and outputs stay where they are. It is run once before. Graphs of one device are
        replayed one after another, and what they write is kept.
        """

    def memory_bytes(self) -> int:
        """Return the memory that this process holds on the device."""


@dataclass(frozen=True)
class _Done:
    def synchronize(self) -> None:
        """Do nothing: the CPU has done what it was asked."""


class HostDevice:
    """The CPU, under the name of any kind: each call returns when it is done."""

    def __init__(self, kind: str = CPU) -> None:
        self.kind, self.name = kind, processor_name()
        self.torch_device = torch.device(CPU)

    def allocate_staging(self, num_bytes: int) -> Tensor:
        """As `EngineDevice.allocate_staging`."""
        return torch.empty(num_bytes, dtype=torch.uint8)

    def record(self) -> Completion:
        """As `EngineDevice.record`."""
        return _Done()

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """As `EngineDevice.capture`, by computing again."""
        outputs = compute()
        return lambda: outputs.copy_(compute()), outputs

    def memory_bytes(self) -> int:
        """Return 0: the memory of the host is shared."""
        return 0


class TorchAccelerator:
    """An accelerator of torch: the current device of its kind. Not run on hardware."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._module: Any = torch.get_device_module(kind)
        self.torch_device = torch.device(kind, torch.accelerator.current_device_index())
        get_name = getattr(self._module, "get_device_name", processor_name)
        self.name = str(get_name())
        torch.set_float32_matmul_precision("highest")  # what is judged by is fp32, without TF32
        self._graph_memory: Any = None

    def allocate_staging(self, num_bytes: int) -> Tensor:
        """As `EngineDevice.allocate_staging`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=ENGINE_DEVICES[self.kind].pins)

    def record(self) -> Completion:
        """As `EngineDevice.record`; who waits sleeps, because a replica has one core."""
        event = torch.Event(self.torch_device, blocking=True)
        event.record()
        return event

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """As `EngineDevice.capture`."""
        stream = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.torch_device))
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream(self.torch_device).wait_stream(stream)
        if self._graph_memory is None:  # all graphs share it, as they run one after another
            self._graph_memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Thread-local, because the engine thread may compute with another model meanwhile.
        with torch.cuda.graph(
            graph, pool=self._graph_memory, stream=stream, capture_error_mode="thread_local"
        ):
            outputs = compute()
        return graph.replay, outputs

    def memory_bytes(self) -> int:
        """As `EngineDevice.memory_bytes`; 0 where torch does not count it."""
        count = getattr(self._module, "memory_reserved", lambda: 0)
        return int(count())


@dataclass(frozen=True)
class DeviceFacts:
    """What torch has for one kind of device.

    pins: whether host memory is pinned for it. has_graphs: whether it replays captured graphs.
    """

    pins: bool
    has_graphs: bool


ENGINE_DEVICES = {
    CPU: DeviceFacts(pins=False, has_graphs=False),
    "cuda": DeviceFacts(pins=True, has_graphs=True),
    "xpu": DeviceFacts(pins=True, has_graphs=False),
    "mps": DeviceFacts(pins=False, has_graphs=False),
}


def find_device_problem(kind: str) -> str | None:
    """Return why this process cannot compute on a device of `kind`; None if it can."""
    if kind not in ENGINE_DEVICES:
        served = ", ".join(ENGINE_DEVICES)
        return f"serving has no engine for {kind}; it has engines for {served}"
    if kind == CPU:
        return None
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None or found.type != kind:
        return f"torch {torch.__version__} finds no {kind} device here; name cpu"
    return None


def find_engine_device() -> str:
    """Return the kind of the device that serves here: an accelerator where there is one."""
    kinds = (kind for kind in ENGINE_DEVICES if kind != CPU and find_device_problem(kind) is None)
    return next(kinds, CPU)


def open_device(kind: str) -> EngineDevice:
    """Return the device of `kind` of this process. Raises DeviceError if there is none."""
    problem = find_device_problem(kind)
    if problem is not None:
        raise DeviceError(f"device {kind!r}: {problem}")
    return HostDevice() if kind == CPU else TorchAccelerator(kind)


def limit_device_memory(kind: str, share: float) -> None:
    """Let this process hold no more than a share of the memory of its device of `kind`."""
    torch.get_device_module(kind).set_per_process_memory_fraction(share)
