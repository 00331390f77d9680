"""The header of a safetensors file, verified against the size of the file before a tensor is read.

Imports no torch: it tells within milliseconds what a model of any size holds.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.untrusted.bounded_json import (
    FETCH_AGAIN,
    UntrustedFileError,
    check_size,
    format_bytes,
    parse_json,
)

# The format allows 100 MB. An entry takes about 130 bytes and a BERT of 24 layers has 400 of them.
MAX_HEADER_BYTES = 4 * 2**20
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
MORE_MEMORY = f"{FETCH_AGAIN}, or use a machine with more memory"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: its shape, and the bytes from `start` to `end` behind the header."""

    shape: tuple[int, ...]
    start: int
    end: int


def read_tensor_header(path: Path, max_bytes: int) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name, without reading any of them.

    Each lies inside the file and is as long as its shape and dtype say; together they fill it, none
    over another. max_bytes: the most that the file may have. Raises UntrustedFileError.
    """
    size = check_size(path, max_bytes, MORE_MEMORY)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UntrustedFileError(
                f"{path}: its header is said to have {format_bytes(length)}, and the file has "
                f"{format_bytes(size)}; {FETCH_AGAIN}"
            )
        if length > MAX_HEADER_BYTES:
            raise UntrustedFileError(
                f"{path}: its header has {format_bytes(length)}, and at most "
                f"{format_bytes(MAX_HEADER_BYTES)} are read; {FETCH_AGAIN}"
            )
        header = parse_json(file.read(length), MAX_HEADER_BYTES, f"{path}: its header")
    header.pop("__metadata__", None)
    entries = {name: _parse_entry(path, name, entry) for name, entry in header.items()}
    _check_layout(path, entries, size - 8 - length)
    return entries


def _parse_entry(path: Path, name: str, entry: Any) -> TensorEntry:
    """Return a tensor whose length is that of its shape and dtype."""
    place = f"{path}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UntrustedFileError(f"{place}: has no dtype, shape and data_offsets; {FETCH_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise UntrustedFileError(
            f"{place}: is of dtype {str(dtype)[:40]!r}; there is {', '.join(ITEM_BYTES)}"
        )
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise UntrustedFileError(f"{place}: its shape or data_offsets are no sizes; {FETCH_AGAIN}")
    start, end = offsets
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - start != expected:
        raise UntrustedFileError(
            f"{place}: {shape} {dtype} takes {expected} bytes, but its data_offsets {offsets} hold "
            f"{end - start}; {FETCH_AGAIN}"
        )
    return TensorEntry(tuple(shape), start, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _check_layout(path: Path, entries: dict[str, TensorEntry], num_bytes: int) -> None:
    """Raise UntrustedFileError unless the tensors fill the bytes behind the header, each once."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != reached:
            what = "overlaps another" if entry.start < reached else "leaves a gap before it"
            raise UntrustedFileError(
                f"{path}: tensor {name[:80]!r}: {what} at byte {entry.start}; {FETCH_AGAIN}"
            )
        reached = entry.end
    if reached != num_bytes:
        raise UntrustedFileError(
            f"{path}: its tensors take {reached} bytes, but {num_bytes} follow the header; "
            f"{FETCH_AGAIN}"
        )
