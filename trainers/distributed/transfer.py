"""Copies between the host and a device, without either waiting for the other.

Host and device work side by side only while neither asks the other for a result. What the next step
needs is copied on a stream of its own while this one computes, and what a step has computed is read
when it is there. On the CPU there is nobody to wait for, and everything is there at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Transfer:
    """Copies of the CPU, and of devices that have no streams here."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_immediate(self) -> bool:
        """Whether results are there as soon as they are asked for."""
        return self.device.type == "cpu"

    @property
    def peak_memory(self) -> int:
        """The most bytes that this process has held on the device; 0 where nobody counts."""
        return 0

    def free_memory(self) -> None:
        """Give memory that is kept for later use back to the device."""

    def to_device(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device."""
        return torch.from_numpy(array).to(self.device)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Copy beside what the device computes, in whichever thread this is."""
        yield

    def mark(self) -> Any:
        """Mark the copies that were begun `ahead`; see `wait_for`."""
        return None

    def wait_for(self, mark: Any, tensors: Iterable[Tensor]) -> None:
        """Let the device compute on `tensors` only when they have arrived."""

    def begin_read(self, values: Tensor) -> Readback:
        """Begin to read `values` [n] from the device."""
        return Readback(values.detach().to("cpu", copy=True))


class CudaTransfer(Transfer):
    """Copies from pinned memory, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def peak_memory(self) -> int:
        """The most bytes that this process has held on the device."""
        return int(torch.cuda.max_memory_allocated(self.device))

    def free_memory(self) -> None:
        """Give memory that is kept for later use back to the device."""
        torch.cuda.empty_cache()

    def to_device(self, array: np.ndarray) -> Tensor:
        """Copy an array to the device, through pinned memory."""
        return torch.from_numpy(array).pin_memory().to(self.device, non_blocking=True)

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Make the stream of copies current; the current device is another in each thread."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """Record an event after the copies so far."""
        return self._stream.record_event()

    def wait_for(self, mark: Any, tensors: Iterable[Tensor]) -> None:
        """Make the current stream wait, and keep memory from the stream of copies until then."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(mark)
        for tensor in tensors:
            tensor.record_stream(current)

    def begin_read(self, values: Tensor) -> Readback:
        """Copy `values` to pinned memory when the device has computed them."""
        pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        pinned.copy_(values.detach(), non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return Readback(pinned, event)


class Readback:
    """Numbers on their way from the device."""

    def __init__(self, values: Tensor, event: Any = None) -> None:
        self._values, self._event = values, event

    def get(self) -> list[float]:
        """Wait until they are there and return them."""
        if self._event is not None:
            self._event.synchronize()
        return [float(value) for value in self._values.tolist()]


def open_transfer(device: torch.device) -> Transfer:
    """Return the way to copy to and from `device`."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)
