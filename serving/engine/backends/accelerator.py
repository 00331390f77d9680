"""PyTorch on an accelerator: texts end to end, one copy in and one copy out of a batch.

Two batches may be under way: while the device computes one, the host packs the next. Small batches
replay CUDA graphs, because launching a kernel takes longer than running it. Nothing here has run on
hardware; tests run it on `HostDevice`.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from serving.engine.backends.pytorch import parameter_bytes
from serving.engine.devices import Completion, EngineDevice
from trainers.models.attention import has_varlen_attention
from trainers.models.packed import PackedBatch

ALIGNMENT = 16  # bytes; a view of another dtype begins at a multiple of its size
# Tokens of the captured graphs. A batch is filled up with one further text to the next of them; a
# step is at most LONGEST, so that this text is none that flash attention was not captured for.
LADDER = (*range(64, 512, 64), *range(512, 1024, 128), *range(1024, 2049, 256))
LONGEST = 512  # tokens of a text in a captured graph
TOKENS_A_TEXT = 16  # at least, on average, in a captured graph


class AcceleratorBackend:
    """A network of `networks.py` on `device`, in `dtype`.

    graphs: replay a captured graph where a batch is small. Attention is flash over texts of various
    lengths where torch has it; else the texts are laid in rows for its time.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        device: EngineDevice,
        dtype: torch.dtype = torch.float32,
        graphs: bool = False,
    ) -> None:
        self.name, self.device = name, device
        self.network = network.to(device.torch_device, dtype)
        self.num_bytes = parameter_bytes(network)
        self._is_varlen = has_varlen_attention(device.torch_device, dtype)
        self._stagings = [Staging(device), Staging(device)]
        self._ladder = GraphLadder(self.network, device) if graphs and self._is_varlen else None

    def run(self, packed: PackedBatch) -> np.ndarray:
        """As `Backend.run`."""
        return self.start(packed)()

    def start(self, packed: PackedBatch) -> Callable[[], np.ndarray]:
        """Let the device begin; return what waits for the outputs of `run`.

        Before the third batch begins, the first must have been waited for.
        """
        staging = self._stagings[0]
        self._stagings.reverse()
        with torch.inference_mode():
            size = None if self._ladder is None else self._ladder.find_size(packed)
            if self._ladder is not None and size is not None:
                outputs = self._ladder.compute(packed, size, staging)
            elif self._is_varlen:
                inputs = staging.upload(packed.arrays)
                outputs = self.network(*inputs, lengths=packed.lengths)
            else:
                outputs = self.network(*staging.upload(tuple(packed.graph_inputs.values())))
            return staging.download(outputs)


class GraphLadder:
    """Captured graphs of a network, one for each number of tokens of LADDER."""

    def __init__(self, network: nn.Module, device: EngineDevice) -> None:
        self._network = network
        staging = Staging(device)
        largest = _example(LADDER[-1])
        # All graphs read the same memory: they run one after another.
        self._memory = torch.empty(
            num_staged_bytes(largest), dtype=torch.uint8, device=device.torch_device
        )
        self._graphs: dict[int, tuple[Callable[[], object], Tensor]] = {}
        with torch.inference_mode():
            for size in reversed(LADDER):  # the smaller ones fit into memory of the largest
                inputs = staging.upload(_example(size), self._memory)
                staging.wait()
                lengths = (min(size, LONGEST),) * num_slots(size)
                self._graphs[size] = device.capture(_call(network, inputs, lengths))

    def find_size(self, packed: PackedBatch) -> int | None:
        """Return the tokens of the graph that holds a batch; None if no graph does."""
        place = bisect.bisect_left(LADDER, len(packed.ids))
        if place == len(LADDER) or max(packed.lengths) > LONGEST:
            return None
        size, slots = LADDER[place], num_slots(LADDER[place])
        # The text that fills up needs a slot too.
        fits = len(packed.lengths) < slots and len(packed.reads) <= slots
        return size if fits and packed.ids.dtype.kind == "i" else None

    def compute(self, packed: PackedBatch, size: int, staging: Staging) -> Tensor:
        """Return the network's outputs for a batch, by the graph of `size` tokens."""
        staging.upload(_fill_up(packed, size), self._memory)
        replay, outputs = self._graphs[size]
        replay()
        return outputs[: len(packed.reads)]


class Staging:
    """Host memory of one batch: its arrays cross in one copy, its outputs in another."""

    def __init__(self, device: EngineDevice) -> None:
        self._device = device
        self._inputs = self._outputs = device.allocate_staging(0)
        self._under_way: Completion | None = None

    def upload(self, arrays: Sequence[np.ndarray], memory: Tensor | None = None) -> list[Tensor]:
        """Copy arrays to the device and return them there.

        memory: where on the device, uint8; None for new memory.
        """
        self.wait()  # the copy before this one still reads
        size = num_staged_bytes(arrays)
        if len(self._inputs) < size:
            self._inputs = self._device.allocate_staging(2 * size)
        host, start = self._inputs[:size].numpy(), 0
        places = []
        for array in arrays:
            end = start + array.nbytes
            host[start:end].view(array.dtype)[:] = array.reshape(-1)
            places.append((start, end))
            start = _align(end)
        if memory is None:
            memory = torch.empty(size, dtype=torch.uint8, device=self._device.torch_device)
        memory[:size].copy_(self._inputs[:size], non_blocking=True)
        self._under_way = self._device.record()
        return [
            memory[begin:end].view(_TORCH_DTYPES[array.dtype.str]).view(array.shape)
            for (begin, end), array in zip(places, arrays, strict=True)
        ]

    def download(self, outputs: Tensor) -> Callable[[], np.ndarray]:
        """Begin to copy outputs to the host as float32; return what waits for them."""
        size, shape = 4 * outputs.numel(), outputs.shape
        if len(self._outputs) < size:
            self._outputs = self._device.allocate_staging(2 * size)
        landed = self._outputs[:size].view(torch.float32).view(shape)
        landed.copy_(outputs.float(), non_blocking=True)
        done = self._under_way = self._device.record()

        def wait() -> np.ndarray:
            done.synchronize()
            return np.array(landed.numpy())

        return wait

    def wait(self) -> None:
        """Wait until the device has copied what it was asked to."""
        if self._under_way is not None:
            self._under_way.synchronize()
            self._under_way = None


def num_slots(size: int) -> int:
    """Return the texts of a captured graph of `size` tokens, the one that fills it up included."""
    return max(8, size // TOKENS_A_TEXT)


def num_staged_bytes(arrays: Sequence[np.ndarray]) -> int:
    """Return the bytes that arrays take side by side."""
    return sum(_align(array.nbytes) for array in arrays)


def _align(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _fill_up(packed: PackedBatch, size: int) -> tuple[np.ndarray, ...]:
    """Return `packed.arrays` with a further text up to `size` tokens, and a read for each slot.

    Slots beyond it hold texts without tokens. What is read of them is dropped.
    """
    ids, texts, positions, reads = packed.arrays
    more, slots = size - len(ids), num_slots(size)
    return (
        np.concatenate([ids, np.full(more, ids[0])]),
        np.concatenate([texts, np.full(more, len(packed.lengths))]),
        np.concatenate([positions, np.full(more, positions[0])]),
        np.concatenate([reads, np.zeros(slots - len(reads), dtype=np.int64)]),
    )


def _example(size: int) -> tuple[np.ndarray, ...]:
    """Return inputs of the captured graph of `size` tokens, all at a position of any model."""
    lengths = [LONGEST] * ((size - 1) // LONGEST) or [1]
    rows = [np.ones(length, dtype=np.int64) for length in lengths]
    return _fill_up(PackedBatch.from_rows(rows, [np.zeros_like(row) for row in rows]), size)


def _call(
    network: nn.Module, inputs: Sequence[Tensor], lengths: tuple[int, ...]
) -> Callable[[], Tensor]:
    """Return a call of `network`. lengths: bounds; where texts begin is known by `inputs`."""
    return lambda: network(*inputs, lengths=lengths)


_TORCH_DTYPES = {
    np.dtype(np.int64).str: torch.int64,
    np.dtype(np.float32).str: torch.float32,
}
