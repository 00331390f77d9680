"""A fake process group and fake tensors: one process acts as one rank of thousands.

Collectives of torch's `fake` backend return at once, without another rank, and fake tensors have
shapes but no memory, so the code of a run itself can be executed on a machine without accelerators.
Fake tensors are on the CPU: a torch built without CUDA cannot differentiate fake CUDA tensors.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

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

from trainers.data.tokenizer import TextEncoder
from trainers.distributed.mesh import MESH_DIMS, Mesh
from trainers.models.bert import TextModel
from trainers.models.build import Model
from trainers.parallel.parallelize import ParallelModel, parallelize

# The value of every scalar read from a fake tensor. Any above 1 will do: gradients are clipped (the
# norm exceeds its limit), and steps have been counted.
SCALAR_VALUE = 2


@contextmanager
def fake_process_group(world_size: int, rank: int) -> Iterator[None]:
    """Make this process `rank` of `world_size` ranks, none of the others of which exists."""
    assert not dist.is_initialized(), "a process is one rank at a time"
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()
        # DTensor caches by mesh, and the meshes of two ranks compare equal: what is cached for one
        # would name process groups of the other, which are gone.
        _clear_sharding_prop_cache()  # type: ignore[no-untyped-call]
        clear_redistribute_planner_cache()


class FakeTensors:
    """A FakeTensorMode whose tensors answer `item()`, and a model laid out in them."""

    def __init__(self) -> None:
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def fake_creation(self, *modes: TorchDispatchMode) -> Iterator[None]:
        """Create fake tensors inside; `modes` see every operation."""
        with self._fake, self.readable_fakes(*modes):
            yield

    @contextmanager
    def readable_fakes(self, *modes: TorchDispatchMode) -> Iterator[None]:
        """Create real tensors inside, but answer `item()` of fake ones; `modes` see both."""
        with ExitStack() as stack:
            scalars = _ConstantScalars()  # type: ignore[no-untyped-call]
            for mode in (scalars, *modes):
                stack.enter_context(mode)
            yield

    def parallelize_model(
        self, model: TextModel, mesh: Mesh, dtype: torch.dtype | None, *modes: TorchDispatchMode
    ) -> ParallelModel:
        """Call `parallelize` on a model on the meta device, giving it fake memory."""

        def materialize(part: Model) -> None:
            assert isinstance(part, TextModel)
            with self._fake:
                part.to_empty(device="cpu")
                part.tie_weights()

        # DeviceMesh computes with the values of tensors (which ranks form a group), so those must
        # be real. DDP alone builds its mesh beforehand but allocates buckets, which must be fake.
        creation = self.fake_creation if mesh.is_data_parallel else self.readable_fakes
        # DDP compares parameter shapes with other ranks; fake tensors have no values to compare.
        no_check = patch.object(
            distributed, "_verify_param_shape_across_processes", return_value=True
        )
        with creation(*modes), no_check:
            parallel = parallelize(model, mesh, materialize, dtype)
        for module in parallel.wrapped_modules.values():
            if isinstance(module, DistributedDataParallel):
                _reduce_in_python(module)
        return parallel


def _reduce_in_python(replica: DistributedDataParallel) -> None:
    """Make DDP reduce gradients by a Python hook: its C++ reducer cannot use a fake group.

    Also keep it from rebuilding its buckets after the first step, for which it reads tensors. The
    new buckets would hold the same bytes in another order.
    """
    replica.register_comm_hook(None, _all_reduce_hook)
    # DDP rebuilds buckets in _pre_forward, only where gradients are enabled.
    replica._pre_forward = torch.no_grad()(replica._pre_forward)  # type: ignore[method-assign]


def _all_reduce_hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    dist.all_reduce(bucket.buffer())
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


class FakeMesh(Mesh):
    """A mesh that computes with real tensors while a FakeTensorMode is active."""

    def stage_peer(self, target: int, source: int) -> tuple[int, Any]:
        """See `Mesh`."""
        with unset_fake_temporarily():
            return super().stage_peer(target, source)

    def name_of_group(self, ranks: tuple[int, ...]) -> str:
        """Return the mesh dimension of the process group of `ranks`."""
        assert self.device_mesh is not None
        for name in MESH_DIMS:
            if tuple(dist.get_process_group_ranks(self.device_mesh.get_group(name))) == ranks:
                return name
        line = dist.get_process_group_ranks(self.device_mesh.get_group("pp"))
        return "pp ends" if set(ranks) <= set(line) else "all"


class FakeTokenizer(TextEncoder):
    """A tokenizer of which only the vocabulary size is known."""

    def __init__(self, num_tokens: int) -> None:
        self.pad_id, self.num_tokens = 0, num_tokens


@contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """Compute norms and softmax in fp32, as autocast on CUDA does; on the CPU it leaves them bf16.

    https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32".
    """
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name, function in _FP32_ON_CUDA.items():
            library.impl(name, partial(_run_in_fp32, function), "AutocastCPU")
        yield


_FP32_ON_CUDA = {"layer_norm": torch.ops.aten.layer_norm, "softmax.int": torch.ops.aten.softmax}


def _run_in_fp32(function: Any, *args: Any) -> Any:
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    with torch._C._ExcludeDispatchKeyGuard(autocast):
        return function(*tree_map_only(Tensor, _to_fp32, args))


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class _ConstantScalars(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers `item()` of fake tensors with SCALAR_VALUE."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        is_item = function is torch.ops.aten._local_scalar_dense.default
        if is_item and isinstance(args[0], FakeTensor):
            return float(SCALAR_VALUE) if args[0].is_floating_point() else SCALAR_VALUE
        return function(*args, **(kwargs or {}))
