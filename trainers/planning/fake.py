"""Ranks and tensors that are only pretended: one process plays one rank of thousands.

Collectives return at once without another rank, and tensors have shapes but no memory, so the very
code of a run can be followed on a machine without accelerators. Fake tensors stand on the cpu: a
torch built without CUDA cannot differentiate fakes of it. Knows no recipe.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.nn.parallel import DistributedDataParallel, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from trainers.distributed.mesh import NAMES, Mesh
from trainers.models.bert import TextModel
from trainers.models.build import Model
from trainers.parallel.parallelize import Parallel, parallelize

READ = 2  # what every number read off a fake tensor is: gradients are clipped, steps counted


@contextmanager
def rank_of(world_size: int, rank: int) -> Iterator[None]:
    """This process as `rank` of `world_size` ranks, of which there is no other."""
    assert not dist.is_initialized(), "a process plays one rank at a time"
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # Meshes of two ranks may be equal, and what is cached for one names groups of the other.
        _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]
        clear_redistribute_planner_cache()


class Tensors:
    """Fake tensors: made while `active`."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def active(self, *modes: TorchDispatchMode) -> Iterator[None]:
        """What is made inside is fake; `modes` see it being made."""
        with self._fake, self.answered(*modes):
            yield

    @contextmanager
    def answered(self, *modes: TorchDispatchMode) -> Iterator[None]:
        """Fakes can be read from; what is made inside is real."""
        with ExitStack() as stack:
            answers = _Answers()  # type: ignore[no-untyped-call]
            for mode in (answers, *modes):
                stack.enter_context(mode)
            yield

    def laid_out(
        self, model: TextModel, mesh: Mesh, dtype: torch.dtype | None, *modes: TorchDispatchMode
    ) -> Parallel:
        """`parallelize` of a model on meta, which gets memory that is fake."""

        def materialize(part: Model) -> None:
            assert isinstance(part, TextModel)
            with self._fake:
                part.to_empty(device="cpu")
                part.tie()

        # The arithmetic of meshes must be real; that of copies has none, and makes buckets.
        with self.active(*modes) if mesh.is_data_parallel else self.answered(*modes), _unchecked():
            parallel = parallelize(model, mesh, materialize, dtype)
        for module in parallel.compute.values():
            if isinstance(module, DistributedDataParallel):
                _take_part(module)
        return parallel


@contextmanager
def _unchecked() -> Iterator[None]:
    """Copies do not ask the others how large their parameters are: there is nothing to read."""
    name = "_verify_param_shape_across_processes"
    check = getattr(distributed, name)
    setattr(distributed, name, lambda *_, **__: True)
    try:
        yield
    finally:
        setattr(distributed, name, check)


def _take_part(copy: DistributedDataParallel) -> None:
    """Let a copy exchange gradients from here: a fake group has nothing to give to C++.

    Nor does it lay out its buckets anew after the first step, for which it reads tensors; the
    buckets would be others of the same bytes in all.
    """
    copy.register_comm_hook(None, _exchange)
    # Without gradients it skips the rebuilding, and nothing else that matters here.
    copy._pre_forward = torch.no_grad()(copy._pre_forward)  # type: ignore[method-assign]


def _exchange(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class PretendedMesh(Mesh):
    """A mesh whose arithmetic, done with tensors, stays real."""

    def neighbour(self, to: int, origin: int) -> tuple[int, Any]:
        with unset_fake_temporarily():
            return super().neighbour(to, origin)

    def dimension(self, ranks: tuple[int, ...]) -> str:
        """The name of the group of `ranks`."""
        assert self.devices is not None
        for name in NAMES:
            if tuple(dist.get_process_group_ranks(self.devices.get_group(name))) == ranks:
                return name
        line = dist.get_process_group_ranks(self.devices.get_group("pp"))
        return "pp ends" if set(ranks) <= set(line) else "all"


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """Autocast on the cpu leaves norms and softmax in bf16; on CUDA they are fp32, and here too.

    https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32".
    """
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, function in _FP32_ON_CUDA.items():
            library.impl(name, partial(_in_fp32, function), "AutocastCPU")
        yield


_FP32_ON_CUDA = {"layer_norm": torch.ops.aten.layer_norm, "softmax.int": torch.ops.aten.softmax}


def _in_fp32(function: Any, *args: Any) -> Any:
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    with torch._C._ExcludeDispatchKeyGuard(autocast):
        return function(*tree_map_only(Tensor, _as_fp32, args))


def _as_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Says what a fake tensor holds, where a program wants to know."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        asked = function is torch.ops.aten._local_scalar_dense.default
        if asked and isinstance(args[0], FakeTensor):
            return float(READ) if args[0].is_floating_point() else READ
        return function(*args, **(kwargs or {}))
