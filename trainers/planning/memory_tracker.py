"""Track every byte that operations allocate, while it lives, and every byte of collectives.

A dispatch mode: it sees each operation of torch, on real or fake tensors, and follows the storages
of the results until the last reference is gone. torch's own MemTracker and CommDebugMode do not
serve here: they refuse a second forward in a step (gradient accumulation, pipelines), know no DDP
or TP beside FSDP, and count collectives without their bytes, groups or point-to-point messages.
"""

import weakref
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainers.distributed.dtensor import to_local

UNMARKED = "temporaries"
RESIZED = "gathered"  # only FSDP resizes storages: it frees unsharded parameters and refills them


class CollectiveKey(NamedTuple):
    """A kind of collective and the global ranks of its group."""

    kind: str
    ranks: tuple[int, ...]


# The kind of each operation, and the argument whose bytes count: the unsharded buffer, that is the
# input, except of all_gather, where it is the output (None: the result).
_COLLECTIVES = {
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::allreduce_coalesced_": ("all_reduce", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::allgather_": ("all_gather", 0),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::reduce_scatter_": ("reduce_scatter", 1),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "c10d::alltoall_base_": ("all_to_all", 1),
    "c10d::send": ("send", 0),
    "c10d::recv_": ("recv", 0),
    "_c10d_functional::all_reduce": ("all_reduce", 0),
    "_c10d_functional::all_reduce_": ("all_reduce", 0),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", None),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0),
    "_c10d_functional::all_to_all_single": ("all_to_all", 0),
    "_c10d_functional::broadcast": ("broadcast", 0),
}


@dataclass
class _LiveStorage:
    size: int
    mark: str
    reference: "weakref.ref[torch.UntypedStorage]"


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count live bytes by mark, their peak, and collectives.

    live_bytes: by mark. peak: the most bytes at once, at_peak: by mark. collective_counts and
    collective_bytes: by kind and ranks. default_mark: given to the storages of new results.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.default_mark = UNMARKED
        self.live_bytes: Counter[str] = Counter()
        self.total = self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.collective_counts: Counter[CollectiveKey] = Counter()
        self.collective_bytes: Counter[CollectiveKey] = Counter()
        self._storages: dict[int, _LiveStorage] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> "MemoryTracker":
        tracker, resize = self, self._resize

        def tracked_resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)  # not an operator, so dispatch does not see it
            tracker._on_resize(storage)
            return result

        torch.UntypedStorage.resize_ = tracked_resize  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def mark_tensors(self, tensors: Iterable[Tensor], name: str) -> None:
        """Mark the storages of `tensors` as `name`, and count those not seen before."""
        for tensor in tensors:
            self._set_mark(self._track_storage(to_local(tensor).untyped_storage()), name)

    def mark_rest(self, name: str, but: Collection[str] | None = None) -> None:
        """Mark as `name` every live storage that is unmarked; with `but`, all but those marks."""
        for live in self._storages.values():
            if live.mark == UNMARKED if but is None else live.mark not in but:
                self._set_mark(live, name)

    def _set_mark(self, live: _LiveStorage, name: str) -> None:
        self.live_bytes[live.mark] -= live.size
        self.live_bytes[name] += live.size
        live.mark = name

    def begin_step(self) -> None:
        """Reset the peak and the collectives; live storages stay counted."""
        self.peak = 0
        self.collective_counts.clear()
        self.collective_bytes.clear()
        self._update_peak()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor | AsyncCollectiveTensor) for kind in types):
            return NotImplemented  # wrappers: the operations on their local tensors come here
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._track_storage(leaf.untyped_storage())
        if function.namespace in ("c10d", "_c10d_functional"):
            self._count_collective(function._schema.name, args, result)
        return result

    def _track_storage(self, storage: torch.UntypedStorage) -> _LiveStorage:
        key = storage._cdata
        live = self._storages.get(key)
        if live is None:
            reference = weakref.ref(storage, lambda _: self._on_free(key))
            live = self._storages[key] = _LiveStorage(
                storage.nbytes(), self.default_mark, reference
            )
            self._adjust_bytes(live, live.size)
        return live

    def _on_free(self, key: int) -> None:
        live = self._storages.pop(key)
        self._adjust_bytes(live, -live.size)

    def _on_resize(self, storage: torch.UntypedStorage) -> None:
        live = self._track_storage(storage)
        self._adjust_bytes(live, -live.size)
        live.mark, live.size = RESIZED, storage.nbytes()
        self._adjust_bytes(live, live.size)

    def _adjust_bytes(self, live: _LiveStorage, size: int) -> None:
        self.live_bytes[live.mark] += size
        self.total += size
        if size > 0:
            self._update_peak()

    def _update_peak(self) -> None:
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.live_bytes)

    def _count_collective(self, name: str, args: Any, result: Any) -> None:
        if name not in _COLLECTIVES:
            return
        kind, which = _COLLECTIVES[name]
        ranks = _group_ranks(args)
        if len(ranks) == 1:
            return
        buffers = tree_leaves(result if which is None else args[which])
        key = CollectiveKey(kind, ranks)
        self.collective_counts[key] += 1
        self.collective_bytes[key] += sum(b.nbytes for b in buffers if isinstance(b, Tensor))


def _group_ranks(args: Any) -> tuple[int, ...]:
    """Return the global ranks of the process group among the arguments of a collective."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject):
            try:
                group = dist.ProcessGroup.unbox(argument)
            except (RuntimeError, TypeError):
                continue  # a ReduceOp, which is a ScriptObject, too
            return tuple(dist.get_process_group_ranks(group))
    name: Any = next(argument for argument in reversed(args) if isinstance(argument, str))
    return tuple(dist.get_process_group_ranks(_resolve_process_group(name)))
