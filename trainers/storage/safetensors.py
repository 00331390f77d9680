"""Write a safetensors file one tensor at a time, whatever their sum.

The format: 8 bytes with the length of a JSON header, the header with dtype, shape and position of
each tensor, then their bytes without a gap (github.com/huggingface/safetensors, README). Widest
types come first, so that every tensor is aligned.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPE_NAMES = {
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
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


def write_tensors(
    path: Path, like: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write `tensors` to `path`, in whatever order they come; it is on the disk afterwards.

    like: the shape and dtype of each by name; may be on the meta device. A tensor on an accelerator
    is moved to the CPU only when it is written. Raises ValueError that names a tensor that is
    missing or of another shape.
    """
    header, positions = _build_header(like)
    missing = set(like)
    with path.open("wb") as file:
        file.write(header)
        for name, tensor in tensors:
            if name not in missing or tensor.shape != like[name].shape:
                expected = f"{list(like[name].shape)} once" if name in like else "no such tensor"
                raise ValueError(f"{name} {list(tensor.shape)}: {path.name} holds {expected}")
            file.seek(len(header) + positions[name])
            flat = tensor.to(like[name].dtype).detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
            missing.remove(name)
        if missing:
            raise ValueError(f"{min(missing)} and {len(missing) - 1} others were not given")
        file.flush()
        os.fsync(file.fileno())


def _build_header(like: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """Return the header with its length before it, and the offset of each tensor after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    positions, end = {}, 0
    for name, tensor in sorted(like.items(), key=lambda item: (-item[1].itemsize, item[0])):
        positions[name], end = end, end + tensor.numel() * tensor.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [positions[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, positions
