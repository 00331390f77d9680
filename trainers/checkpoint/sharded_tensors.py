"""Sharded tensors on disk: which shards a rank writes, and how any rank reads any block.

`index.json` gives for each tensor its dtype, its whole shape, and its pieces: the rank that wrote
one, hence the file, and the block of the whole that it is. Blocks may be uneven, and a rank whose
block is empty writes no piece; so a reader intersects blocks and never assumes a layout.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from cluster.errors import BerthaError
from trainers.distributed.dtensor import (
    ShardExtent,
    intersect_extents,
    shard_extent,
    slices_within,
    to_local,
)
from trainers.distributed.mesh import MESH_DIMS, Mesh
from trainers.storage.safetensors import DTYPE_NAMES, DTYPES

INDEX_FILE = "index.json"
REMOVE_IT = "remove that checkpoint, and --resume goes on from the one before"


class CheckpointError(BerthaError):
    """A checkpoint of another model, or none that this code has written; the message says what."""


@dataclass(frozen=True)
class TensorMetadata:
    """A tensor on disk. pieces: (rank that wrote it, block); together they tile the whole."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, ShardExtent], ...]


Index = dict[str, TensorMetadata]


def shard_file(rank: int) -> str:
    """Return the name of the file with the pieces of `rank`."""
    return f"pieces-{rank:05d}.safetensors"


def is_owner(tensor: Tensor, mesh: Mesh) -> bool:
    """Return whether this rank is the first of its stage that holds this piece of `tensor`."""
    if mesh.device_mesh is None:
        return True
    sharded: set[str] = set()  # mesh dimensions along which ranks hold different pieces
    if isinstance(tensor, DTensor):
        names = tensor.device_mesh.mesh_dim_names
        assert names is not None and set(names) <= set(MESH_DIMS), "meshes are parts of the run's"
        placements = zip(names, tensor.placements, strict=True)
        sharded = {name for name, placement in placements if not placement.is_replicate()}
    copied = [name for name in MESH_DIMS[1:] if name not in sharded]  # all but pp: other layers
    return all(mesh.device_mesh.get_local_rank(name) == 0 for name in copied)


def describe_tensors(rank: int, tensors: Mapping[str, Tensor]) -> Index:
    """Return the index of the shards that `rank` writes of `tensors`."""
    index: Index = {}
    for name, tensor in tensors.items():
        extent = shard_extent(tensor)
        assert extent.shape == to_local(tensor).shape, f"{name} is not cut as its placements say"
        pieces = ((rank, extent),) if prod(extent.shape) else ()
        index[name] = TensorMetadata(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), pieces)
    return index


def merge_indexes(indexes: list[Index]) -> Index:
    """Merge the indexes of all ranks."""
    merged: Index = {}
    for index in indexes:
        for name, tensor in index.items():
            before = merged.get(name, TensorMetadata(tensor.dtype, tensor.shape, ()))
            assert (before.dtype, before.shape) == (tensor.dtype, tensor.shape), name
            merged[name] = TensorMetadata(tensor.dtype, tensor.shape, before.pieces + tensor.pieces)
    for name, tensor in merged.items():
        size = sum(prod(extent.shape) for _, extent in tensor.pieces)
        assert size == prod(tensor.shape), f"the pieces of {name} do not make it up"
    return merged


def write_index(directory: Path, index: Index) -> None:
    """Write `index.json`."""
    rows = {
        name: {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "pieces": [
                {"rank": rank, "offsets": extent.offsets, "shape": extent.shape}
                for rank, extent in tensor.pieces
            ],
        }
        for name, tensor in index.items()
    }
    (directory / INDEX_FILE).write_text(json.dumps(rows))


def read_index(directory: Path) -> Index:
    """Read `index.json`. Raises CheckpointError where it is no index."""
    path = directory / INDEX_FILE
    try:
        rows: dict[str, Any] = json.loads(path.read_bytes())
        return {name: _parse_metadata(row) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: is no index of tensors; {REMOVE_IT}") from None


def _parse_metadata(row: Mapping[str, Any]) -> TensorMetadata:
    """Return a row of `index.json`. Raises KeyError, TypeError or ValueError."""
    DTYPES[row["dtype"]]
    pieces = (
        (int(piece["rank"]), ShardExtent(_as_ints(piece["shape"]), _as_ints(piece["offsets"])))
        for piece in row["pieces"]
    )
    return TensorMetadata(row["dtype"], _as_ints(row["shape"]), tuple(pieces))


def _as_ints(values: Iterable[object]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)  # type: ignore[call-overload]


class ShardedTensorReader:
    """Reads tensors of a checkpoint block by block; a context manager that closes its files.

    fetch: called with the name of a file before it is read. moment_kinds: by parameter; moments
    are tensors named `parameter/kind`.
    """

    def __init__(self, directory: Path, fetch: Callable[[str], None]) -> None:
        fetch(INDEX_FILE)
        self.directory, self.index, self._fetch = directory, read_index(directory), fetch
        self.moment_kinds: dict[str, list[str]] = {}
        for key in self.index:
            name, _, kind = key.rpartition("/")
            self.moment_kinds.setdefault(name or kind, []).extend([kind] if name else [])
        self._stack, self._files = ExitStack(), dict[int, Any]()

    def __enter__(self) -> "ShardedTensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read_tensor(self, name: str) -> Tensor:
        """Read the whole tensor `name` to the CPU."""
        shape = self._get_metadata(name).shape
        return self._read_block(name, ShardExtent(shape, (0,) * len(shape)))

    def read_shard(self, name: str, like: Tensor) -> Tensor:
        """Read the part of the tensor `name` that this rank holds of `like`, to the CPU.

        Raises CheckpointError where `like` has another shape.
        """
        shape = self._get_metadata(name).shape
        if shape != tuple(like.shape):
            raise CheckpointError(
                f"{self.directory}: {name} is {list(shape)}, the model's is "
                f"{list(like.shape)}; resume with the recipe that wrote the checkpoint"
            )
        return self._read_block(name, shard_extent(like))

    def _get_metadata(self, name: str) -> TensorMetadata:
        if name not in self.index:
            raise CheckpointError(
                f"{self.directory} holds no {name}: it is of another model; resume with the "
                "recipe that wrote the checkpoint"
            )
        return self.index[name]

    def _read_block(self, name: str, wanted: ShardExtent) -> Tensor:
        tensor = self.index[name]
        block = torch.empty(wanted.shape, dtype=DTYPES[tensor.dtype])
        for rank, piece in tensor.pieces:
            common = intersect_extents(piece, wanted)
            if common is not None:
                source = slices_within(common, piece.offsets)
                target = slices_within(common, wanted.offsets)
                block[target] = self._read_slice(name, rank, source)
        return block

    def _read_slice(self, name: str, rank: int, where: tuple[slice, ...]) -> Tensor:
        if rank not in self._files:
            self._fetch(shard_file(rank))
            path = self.directory / shard_file(rank)
            self._files[rank] = self._stack.enter_context(safe_open(path, framework="pt"))
        file = self._files[rank]
        values: Tensor = file.get_slice(name)[where] if where else file.get_tensor(name)
        return values
