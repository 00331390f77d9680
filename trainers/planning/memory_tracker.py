"""Every byte that operations take, while it lives, and every byte that ranks exchange.

A dispatch mode: it sees each operation of torch, on real tensors or fake ones, and follows the
storages that come out until the last reference is gone. Knows no model.
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
RESIZED = "gathered"  # only FSDP resizes: it empties what it gathered and fills it again


class Exchange(NamedTuple):
    """A kind of collective and the ranks that take part."""

    kind: str
    ranks: tuple[int, ...]


# Operations by name, their kind, and the argument whose bytes count: the whole buffer, which is
# what comes in, but for what is gathered.
_KINDS = {
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
    "_c10d_functional::all_gather_into_tensor": ("all_gather", None),  # what comes out
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0),
    "_c10d_functional::all_to_all_single": ("all_to_all", 0),
    "_c10d_functional::broadcast": ("broadcast", 0),
}


@dataclass
class _Held:
    size: int
    mark: str
    reference: "weakref.ref[torch.UntypedStorage]"


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live bytes by mark, their peak, and exchanges.

    now: bytes alive, by mark. peak: the most at once, and `at_peak` its parts. exchanges: how
    often, and exchanged: bytes, by kind and ranks. A storage that an operation gives is marked
    `fresh`, by which it is unmarked, unless someone knows better.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fresh = UNMARKED
        self.now: Counter[str] = Counter()
        self.total = self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.exchanges: Counter[Exchange] = Counter()
        self.exchanged: Counter[Exchange] = Counter()
        self._held: dict[int, _Held] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> "Ledger":
        ledger, resize = self, self._resize

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)  # no operation: dispatch does not see it
            ledger._resized(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign, assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def mark(self, tensors: Iterable[Tensor], name: str) -> None:
        """Say that the memory of `tensors` is for `name`, and count it if it was not seen."""
        for tensor in tensors:
            storage = to_local(tensor).untyped_storage()
            held = self._note(storage)
            self.now[held.mark] -= held.size
            self.now[name] += held.size
            held.mark = name

    def mark_rest(self, name: str, but: Collection[str] | None = None) -> None:
        """Say that all that lives and is unmarked, or not marked as one of `but`, is for `name`."""
        for held in self._held.values():
            if held.mark == UNMARKED if but is None else held.mark not in but:
                self.now[held.mark] -= held.size
                self.now[name] += held.size
                held.mark = name

    def begin(self) -> None:
        """Forget the peak and the exchanges; what lives goes on living."""
        self.peak = 0
        self.exchanges.clear()
        self.exchanged.clear()
        self._grew()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor | AsyncCollectiveTensor) for kind in types):
            return NotImplemented  # they call what they are made of, and that comes here
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        if function.namespace in ("c10d", "_c10d_functional"):
            self._count(function._schema.name, args, result)
        return result

    def _note(self, storage: torch.UntypedStorage) -> _Held:
        key = storage._cdata
        held = self._held.get(key)
        if held is None:
            reference = weakref.ref(storage, lambda _: self._gone(key))
            held = self._held[key] = _Held(storage.nbytes(), self.fresh, reference)
            self._add(held, held.size)
        return held

    def _gone(self, key: int) -> None:
        held = self._held.pop(key)
        self._add(held, -held.size)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        held = self._note(storage)
        self._add(held, -held.size)
        held.mark, held.size = RESIZED, storage.nbytes()
        self._add(held, held.size)

    def _add(self, held: _Held, size: int) -> None:
        self.now[held.mark] += size
        self.total += size
        if size > 0:
            self._grew()

    def _grew(self) -> None:
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, dict(self.now)

    def _count(self, name: str, args: Any, result: Any) -> None:
        known = _KINDS.get(name)
        if known is None:
            return
        kind, which = known
        ranks = _ranks(args)
        if len(ranks) == 1:
            return
        buffers = tree_leaves(result if which is None else args[which])
        exchange = Exchange(kind, ranks)
        self.exchanges[exchange] += 1
        self.exchanged[exchange] += sum(b.nbytes for b in buffers if isinstance(b, Tensor))


def _ranks(args: Any) -> tuple[int, ...]:
    """The global ranks of the process group among the arguments of a collective."""
    for argument in args:
        if isinstance(argument, torch.ScriptObject):
            try:
                group = dist.ProcessGroup.unbox(argument)
            except (RuntimeError, TypeError):
                continue  # a reduction's kind is an object too
            return tuple(dist.get_process_group_ranks(group))
    name: Any = next(argument for argument in reversed(args) if isinstance(argument, str))
    return tuple(dist.get_process_group_ranks(_resolve_process_group(name)))
