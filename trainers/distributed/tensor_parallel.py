"""Tensor parallelism of single modules: torch's `ParallelStyle`s, combined by a plan of names.

Parameters become DTensors, so that sharding, checkpoints and norms know what each rank holds; the
computation is on local tensors. Activations between modules are plain tensors: whole on every rank,
or with sequence parallelism each rank's chunk of the sequence. Unlike with torch's own styles no
redistribution is looked up by shape, so micro-batches may have any length.
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
    Collective,
    all_gather,
    all_reduce,
    apply_collective,
    identity,
    reduce_scatter,
)


class Redistribute(ParallelStyle):
    """Apply a collective to the first input of a module, and another to its gradient."""

    def __init__(self, forward: Collective, backward: Collective) -> None:
        self.forward, self.backward = forward, backward

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group = device_mesh.get_group()

        def move_input(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return apply_collective(inputs[0], group, self.forward, self.backward), *inputs[1:]

        module.register_forward_pre_hook(move_input)
        return module


class PrepareInput(Redistribute):
    """Make the first input whole on every rank, and sum the ranks' shares of its gradient."""

    def __init__(self, sequence_parallel: bool) -> None:
        if sequence_parallel:
            super().__init__(all_gather, reduce_scatter)
        else:
            super().__init__(identity, all_reduce)


class ColwiseParallel(PrepareInput):
    """Compute this rank's outputs of a linear layer.

    prepare_input: whether the layer's input is prepared here, not by the module around it.
    """

    def __init__(self, sequence_parallel: bool, prepare_input: bool = True) -> None:
        super().__init__(sequence_parallel)
        self.prepare_input = prepare_input

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if self.prepare_input:
            super()._apply(module, device_mesh)
        for name in ("weight", "bias"):
            _distribute_parameter(module, name, device_mesh, Shard(0))
        linear: Any = module

        def forward(x: Tensor) -> Tensor:
            return F.linear(x, _local_parameter(linear.weight), _local_parameter(linear.bias))

        linear.forward = forward
        return module


class RowwiseParallel(ParallelStyle):
    """Compute a linear layer over this rank's inputs, and sum the outputs over the ranks."""

    def __init__(self, sequence_parallel: bool) -> None:
        self.sequence_parallel = sequence_parallel

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        group, chunked = device_mesh.get_group(), self.sequence_parallel
        moves = (reduce_scatter, all_gather) if chunked else (all_reduce, identity)
        _distribute_parameter(module, "weight", device_mesh, Shard(1))
        _distribute_parameter(module, "bias", device_mesh, Replicate())
        linear: Any = module

        def forward(x: Tensor) -> Tensor:
            output = F.linear(x, _local_parameter(linear.weight))
            # The bias is added after the sum, once. On chunks of the sequence each rank sees only
            # the gradient of its own positions: a partial one.
            bias: Tensor = _local_parameter(linear.bias, is_partial=chunked)
            return apply_collective(output, group, *moves) + bias

        linear.forward = forward
        return module


class SequenceParallelNorm(ParallelStyle):
    """Compute a layer norm over this rank's chunk of the sequence.

    Its weights are replicated, but their gradient sums over positions, of which each rank has only
    some: it is marked `Partial`, and `dtensor.reduce_partial_gradients` sums it once per step.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name in ("weight", "bias"):
            _distribute_parameter(module, name, device_mesh, Replicate())
        norm: Any = module

        def forward(x: Tensor) -> Tensor:
            weight = _local_parameter(norm.weight, is_partial=True)
            bias = _local_parameter(norm.bias, is_partial=True)
            return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

        norm.forward = forward
        return module


class VocabParallelEmbedding(ParallelStyle):
    """Shard the rows of a `RowGradEmbedding`, whose forward handles a sharded table."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _distribute_parameter(module, "weight", device_mesh, Shard(0))
        return module


def _distribute_parameter(
    module: nn.Module, name: str, mesh: DeviceMesh, placement: Placement
) -> None:
    """Replace a parameter by a DTensor. Every rank has all of it, so nothing is sent."""
    parameter = getattr(module, name)
    if parameter is None:
        return
    sharded = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    module.register_parameter(name, nn.Parameter(sharded, parameter.requires_grad))


def _local_parameter(parameter: Tensor | None, is_partial: bool = False) -> Any:
    """Return this rank's part. is_partial: whether its gradient must be summed over the ranks."""
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.to_local(grad_placements=[Partial()] if is_partial else None)
