"""Tensors in pieces: which a rank writes, and how any rank reads what it needs of them.

`index.json` says for each tensor its type, its whole shape, and where its pieces are: the rank that
wrote it, hence the file, and the block that it is of the whole. Knows no layout but by its meshes.
"""

import json
from collections.abc import Callable, Mapping
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
from trainers.distributed.dtensor import to_local
from trainers.distributed.extents import Extent, extent, overlap, slices
from trainers.distributed.mesh import NAMES, Mesh
from trainers.storage.safetensors import DTYPES
from trainers.storage.safetensors import NAMES as DTYPE_NAMES

INDEX = "index.json"


class CheckpointError(BerthaError):
    """A checkpoint that is not of this model; the text names the tensor."""


@dataclass(frozen=True)
class Stored:
    """A tensor on disk. pieces: (rank that wrote it, block of the whole); they tile the whole."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, Extent], ...]


Index = dict[str, Stored]


def file_of(rank: int) -> str:
    """The file that holds the pieces of `rank`."""
    return f"pieces-{rank:05d}.safetensors"


def owns(tensor: Tensor, mesh: Mesh) -> bool:
    """Whether this rank is the first, of the ranks of its stage, that hold the same piece."""
    if mesh.devices is None:
        return True
    cut: set[str] = set()
    if isinstance(tensor, DTensor):
        names = tensor.device_mesh.mesh_dim_names
        assert names is not None and set(names) <= set(NAMES), "meshes are parts of the run's"
        placed = zip(names, tensor.placements, strict=True)
        cut = {name for name, placement in placed if not placement.is_replicate()}
    return all(mesh.devices.get_local_rank(name) == 0 for name in NAMES[1:] if name not in cut)


def described(rank: int, held: Mapping[str, Tensor]) -> Index:
    """The index of what one rank writes of the tensors `held`; an empty part is no piece."""
    index: Index = {}
    for name, tensor in held.items():
        part = extent(tensor)
        assert part[0] == to_local(tensor).shape, f"{name} is not cut as its placements say"
        pieces = ((rank, part),) if prod(part[0]) else ()
        index[name] = Stored(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), pieces)
    return index


def joined(parts: list[Index]) -> Index:
    """The index of all ranks, of the index of each."""
    whole: Index = {}
    for part in parts:
        for name, stored in part.items():
            before = whole.get(name, Stored(stored.dtype, stored.shape, ()))
            assert (before.dtype, before.shape) == (stored.dtype, stored.shape), name
            whole[name] = Stored(stored.dtype, stored.shape, before.pieces + stored.pieces)
    for name, stored in whole.items():
        sizes = [prod(shape) for _, (shape, _) in stored.pieces]
        assert sum(sizes) == prod(stored.shape), f"the pieces of {name} do not make it up"
    return whole


def write_index(directory: Path, index: Index) -> None:
    """Write `index.json`."""
    rows = {
        name: {
            "dtype": stored.dtype,
            "shape": stored.shape,
            "pieces": [
                {"rank": rank, "offsets": offsets, "shape": shape}
                for rank, (shape, offsets) in stored.pieces
            ],
        }
        for name, stored in index.items()
    }
    (directory / INDEX).write_text(json.dumps(rows))


def read_index(directory: Path) -> Index:
    """What `write_index` wrote."""
    rows: dict[str, Any] = json.loads((directory / INDEX).read_text())
    return {
        name: Stored(
            row["dtype"],
            tuple(row["shape"]),
            tuple((p["rank"], (tuple(p["shape"]), tuple(p["offsets"]))) for p in row["pieces"]),
        )
        for name, row in rows.items()
    }


class Reader:
    """The tensors of a checkpoint, read block by block; a context that closes its files.

    fetch: called with the name of a file before it is read. kinds: of each parameter the kinds of
    its moments; those are tensors `parameter/kind`.
    """

    def __init__(self, directory: Path, fetch: Callable[[str], None]) -> None:
        fetch(INDEX)
        self.directory, self.index, self._fetch = directory, read_index(directory), fetch
        self.kinds: dict[str, list[str]] = {}
        for key in self.index:
            name, _, kind = key.rpartition("/")
            self.kinds.setdefault(name or kind, []).extend([kind] if name else [])
        self._stack, self._files = ExitStack(), dict[int, Any]()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def whole(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU."""
        shape = self._stored(name).shape
        return self._block(name, (shape, (0,) * len(shape)))

    def part(self, name: str, like: Tensor) -> Tensor:
        """The part of the tensor `name` that this rank holds of `like`, on the CPU.

        Raises CheckpointError where `like` is of another shape.
        """
        stored = self._stored(name)
        if stored.shape != tuple(like.shape):
            raise CheckpointError(
                f"{self.directory}: {name} is {list(stored.shape)}, the model's is "
                f"{list(like.shape)}; resume with the recipe that wrote the checkpoint"
            )
        return self._block(name, extent(like))

    def _stored(self, name: str) -> Stored:
        if name not in self.index:
            raise CheckpointError(
                f"{self.directory} holds no {name}: it is of another model; resume with the "
                "recipe that wrote the checkpoint"
            )
        return self.index[name]

    def _block(self, name: str, wanted: Extent) -> Tensor:
        stored = self.index[name]
        block = torch.empty(wanted[0], dtype=DTYPES[stored.dtype])
        for rank, piece in stored.pieces:
            common = overlap(piece, wanted)
            if common is not None:
                block[slices(common, wanted[1])] = self._read(name, rank, slices(common, piece[1]))
        return block

    def _read(self, name: str, rank: int, where: tuple[slice, ...]) -> Tensor:
        if rank not in self._files:
            self._fetch(file_of(rank))
            path = self.directory / file_of(rank)
            self._files[rank] = self._stack.enter_context(safe_open(path, framework="pt"))
        file = self._files[rank]
        piece: Tensor = file.get_slice(name)[where] if where else file.get_tensor(name)
        return piece
