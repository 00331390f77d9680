"""A safetensors file written one tensor at a time, whatever their sum.

The format: 8 bytes with the length of a JSON header, the header with dtype, shape and position of
each tensor, then their bytes without a gap (github.com/huggingface/safetensors, README). Widest
types come first, so that every tensor is aligned.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


def write(path: Path, like: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write `tensors` to `path`, in whatever order they come; it is on the disk afterwards.

    like: the shape and dtype of each by name; may be on the meta device. A tensor on an accelerator
    is moved when its turn has come. ValueError names what is missing or of another shape.
    """
    header, positions = _layout(like)
    missing = set(like)
    with path.open("wb") as file:
        file.write(header)
        for name, tensor in tensors:
            if name not in missing or tensor.shape != like[name].shape:
                expected = f"{list(like[name].shape)} once" if name in like else "no such tensor"
                raise ValueError(f"{name} {list(tensor.shape)}: {path.name} holds {expected}")
            file.seek(len(header) + positions[name])
            _write_bytes(file, tensor.to(like[name].dtype))
            missing.remove(name)
        if missing:
            raise ValueError(f"{min(missing)} and {len(missing) - 1} others were not given")
        file.flush()
        os.fsync(file.fileno())


def _layout(like: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """The header with its length before it, and where the bytes of each tensor begin after it."""
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    positions, end = {}, 0
    for name, tensor in sorted(like.items(), key=lambda item: (-item[1].itemsize, item[0])):
        positions[name], end = end, end + tensor.numel() * tensor.itemsize
        described[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [positions[name], end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, positions


def _write_bytes(file: BinaryIO, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    file.write(flat.view(torch.uint8).numpy().data)
