"""How one module shares its work among tensor-parallel ranks: styles for plans of module names.

Parameters become DTensors, so that sharding, checkpoints and norms know what each rank holds; the
work is done on local tensors. Activations between modules are plain tensors: whole on every rank,
or, with sequence parallelism, each rank's part of the sequence.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ParallelStyle

from trainers.distributed.collectives import (
    Move,
    exchanged,
    gathered,
    of_first,
    own_part,
    own_part_of_total,
    same,
    total,
)


class Entrance(ParallelStyle):
    """The first input of a module is made whole; each rank's share of its gradient is added up."""

    def __init__(self, parted: bool) -> None:
        self.there: Move = gathered if parted else same
        self.back: Move = own_part_of_total if parted else total

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group = device_mesh.get_group()

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return exchanged(inputs[0], group, self.there, self.back), *inputs[1:]

        module.register_forward_pre_hook(enter)
        return module


class Passage(Entrance):
    """The first input of a module is laid out anew; every rank computes alike behind it."""

    def __init__(self, there: Move, back: Move) -> None:
        self.there, self.back = there, back


def to_parts() -> Passage:
    """From whole sequences to parts of them."""
    return Passage(own_part, gathered)


def to_whole() -> Passage:
    """From parts of sequences to whole ones, on which every rank computes the same."""
    return Passage(gathered, own_part)


def counted_once() -> Passage:
    """Whole and alike on all ranks, though its gradient will be added up over them."""
    return Passage(same, of_first)


class Columns(Entrance):
    """A linear layer that computes this rank's outputs. entrance: whether its input is made whole
    here, rather than by the module around it.
    """

    def __init__(self, parted: bool, entrance: bool = True) -> None:
        super().__init__(parted)
        self.entrance = entrance

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if self.entrance:
            super()._apply(module, device_mesh)
        for name in ("weight", "bias"):
            _share(module, name, device_mesh, Shard(0))
        linear: Any = module

        def forward(x: Tensor) -> Tensor:
            return F.linear(x, _local(linear.weight), _local(linear.bias))

        linear.forward = forward
        return module


class Rows(ParallelStyle):
    """A linear layer over this rank's inputs, whose outputs are added up over the ranks."""

    def __init__(self, parted: bool) -> None:
        self.parted = parted

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group, parted = device_mesh.get_group(), self.parted
        there, back = (own_part_of_total, gathered) if parted else (total, same)
        _share(module, "weight", device_mesh, Shard(1))
        _share(module, "bias", device_mesh, Replicate())
        linear: Any = module

        def forward(x: Tensor) -> Tensor:
            added = exchanged(F.linear(x, _local(linear.weight)), group, there, back)
            bias: Tensor = _local(linear.bias, parted)
            return added + bias

        linear.forward = forward
        return module


class Norm(ParallelStyle):
    """A layer norm over this rank's part of the sequence; its own gradient is a summand."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name in ("weight", "bias"):
            _share(module, name, device_mesh, Replicate())
        norm: Any = module

        def forward(x: Tensor) -> Tensor:
            weight, bias = _local(norm.weight, True), _local(norm.bias, True)
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

        norm.forward = forward
        return module


class SharedRows(ParallelStyle):
    """A `Lookup` whose rows the ranks share; it looks up accordingly."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _share(module, "weight", device_mesh, Shard(0))
        return module


def _share(module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    """Make a parameter a DTensor; every rank has all of it, so nothing is sent."""
    parameter = getattr(module, name)
    if parameter is None:
        return
    shared = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(shared, parameter.requires_grad))


def _local(parameter: Tensor | None, summand: bool = False) -> Any:
    """This rank's part. summand: whether its gradient is to be added over the ranks."""
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.to_local(grad_placements=[Partial()] if summand else None)
