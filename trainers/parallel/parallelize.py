"""A layout applied to a model: stages, then tensor parallelism, then shards or copies.

What it gives is `Parallel`: the parts of the model on this rank, ready to compute with, and what
must happen to their gradients. Knows no data and no optimizer; the model knows nothing of it.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from cluster.costmodel.model_shape import stage_layers
from trainers.distributed.dtensor import complete, squared_norm, to_local
from trainers.distributed.mesh import Mesh
from trainers.distributed.vocab_parallel_loss import VocabularyPart
from trainers.models.bert import TextModel
from trainers.models.build import Model
from trainers.models.dropout import KeyedDropout
from trainers.models.shape import shape_of
from trainers.parallel.tp_plan import plan

Materialize = Callable[[Model], object]


class Parallel:
    """The parts of a model on this rank, by stage, and how their gradients become whole.

    parts: the modules to read weights from, unwrapped. compute: the same, to call.
    """

    def __init__(
        self,
        mesh: Mesh,
        parts: dict[int, Model],
        materialize: Materialize,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.mesh, self.parts = mesh, parts
        self.compute: dict[int, nn.Module] = {
            stage: _distributed(part, mesh, materialize, dtype) for stage, part in parts.items()
        }
        tied = any(isinstance(part, TextModel) and part.tied for part in parts.values())
        self._ends = mesh.ends if tied else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter of this rank once, by the name it has in the whole model.

        A table that the first and the last stage both hold has one name on both.
        """
        for part in self.parts.values():
            tied = part.tied if isinstance(part, TextModel) else {}
            for name, parameter in part.named_parameters():
                inner = name.removeprefix("net.")
                yield f"net.{tied[inner]}" if inner in tied else name, parameter

    def train(self, mode: bool = True) -> None:
        """Switch dropout on or off, and let go of what was gathered in the other mode."""
        for module in self.compute.values():
            module.train(mode)
            if isinstance(module, FSDPModule):
                module.reshard()

    def fuse_attention(self, fused: bool) -> None:
        """Whether training attends by torch's fused kernel."""
        for part in self.parts.values():
            if isinstance(part, TextModel):
                part.fuse_attention(fused)

    def exchange(self, stage: int, now: bool) -> None:
        """Whether the next backward of `stage`, the last of a step, also exchanges gradients.

        Shards are always reduced at once, so that no rank holds a whole gradient.
        """
        module = self.compute[stage]
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = now  # read by forward and by backward
        elif isinstance(module, FSDPModule):
            module.set_requires_all_reduce(now)
            module.set_is_last_backward(now)

    @property
    def exchanges_rows(self) -> bool:
        """Whether the gradient of the word embeddings travels by row."""
        first = self.parts.get(0)
        copies = self.mesh.is_data_parallel and self.mesh.layout.dp > 1
        return copies and isinstance(first, TextModel) and first.table.by_row

    @property
    def vocabulary(self) -> VocabularyPart:
        """The tokens that the masked-language head of this rank has logits of."""
        model, layout = next(iter(self.parts.values())), self.mesh.layout
        if layout.tp == 1 or not isinstance(model, TextModel):
            return VocabularyPart()
        assert self.mesh.devices is not None
        share = -(-model.config.vocab_size // layout.tp)  # as torch cuts: the last ones are smaller
        offset = min(model.config.vocab_size, share * self.mesh.tp_rank)
        return VocabularyPart(offset, self.mesh.devices.get_group("tp"))

    def finish(self, ids: Tensor | None) -> None:
        """Complete the gradients of a step.

        ids: [n] the distinct tokens of its global batch, where rows are exchanged.
        """
        if ids is not None:
            first = self.parts[0]
            assert isinstance(first, TextModel)
            first.table.average_gradient(ids)
        complete(parameter for _, parameter in self.named_parameters())
        if self._ends is not None:
            gradient = self._tied_parameter().grad
            assert gradient is not None
            dist.all_reduce(to_local(gradient), group=self._ends)

    def clip(self, limit: float | None) -> float:
        """Scale all gradients so that their global norm is at most `limit`; the norm before.

        A parameter that two stages hold counts once.
        """
        skipped = self._tied_parameter() if self._ends is not None and 0 in self.parts else None
        held = [p for _, p in self.named_parameters() if p.grad is not None]
        counted = [p.grad for p in held if p is not skipped and p.grad is not None]
        device = held[0].device
        norm = math.sqrt(squared_norm(counted, self.mesh.ranks_per_stage, device).item())
        if limit is not None and norm > limit:
            gradients = [to_local(p.grad) for p in held if p.grad is not None]
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return norm

    def _tied_parameter(self) -> nn.Parameter:
        """The vocabulary table that the first and the last stage both hold."""
        for part in self.parts.values():
            assert isinstance(part, TextModel)
            for name, source in part.tied.items():
                end = source if part.is_first else name if part.is_last else None
                if end is not None and name.endswith("weight"):
                    return part.net.get_parameter(end)
        raise AssertionError("this rank holds no end of the model")


def parallelize(
    model: Model, mesh: Mesh, materialize: Materialize, dtype: torch.dtype | None = None
) -> Parallel:
    """`model`, in host memory or on the meta device, laid out over `mesh`.

    materialize: puts a part, cut down to what this rank holds, on the device with its weights.
    dtype: what FSDP gathers parameters in; None is their own.
    """
    layout = mesh.layout
    if not isinstance(model, TextModel):
        return Parallel(mesh, {0: model}, materialize)
    model.recompute = layout.recompute
    parts: dict[int, Model] = {0: model}
    if layout.pp > 1:
        task = "masked-lm" if model.masked_lm else "classification"
        labels = 0 if model.masked_lm else model.config.num_labels
        spans = stage_layers(shape_of(model.config, task, labels), layout.num_stages)
        own = range(mesh.pp_rank, layout.num_stages, layout.pp)
        parts = {stage: model.part(spans[stage]) for stage in own}
    for part in parts.values():
        assert isinstance(part, TextModel)
        if layout.tp > 1:
            _tensor_parallel(part, mesh)
        if part.is_first and not mesh.is_data_parallel:
            part.table.by_row = False
    return Parallel(mesh, parts, materialize, dtype)


def _tensor_parallel(part: TextModel, mesh: Mesh) -> None:
    assert mesh.devices is not None
    layout = mesh.layout
    split = plan(part, layout.sequence_parallel)
    parallelize_module(part, mesh.devices["tp"], split, src_data_rank=None)
    part.tie()
    share = (mesh.tp_rank, layout.tp)
    layers = part.family.layers_of(part.net)
    for index in part.span:
        layer = layers.get_submodule(str(index))
        heads = layer.get_submodule(f"{part.family.attention}.dropout")
        last = part.reads_cls_alone and index == part.num_layers - 1
        for module in layer.modules():
            if isinstance(module, KeyedDropout) and (
                module is heads or (layout.sequence_parallel and not last)
            ):
                module.part = share


def _distributed(
    part: Model, mesh: Mesh, materialize: Materialize, dtype: torch.dtype | None
) -> nn.Module:
    """`part` with its weights, its gradients averaged over the data-parallel ranks."""
    sharded = mesh.layout.dp > 1 and not mesh.is_data_parallel
    if sharded:
        _shard(part, mesh, dtype)
    materialize(part)
    return _copies(part) if mesh.layout.dp > 1 and not sharded else part


def _shard(part: Model, mesh: Mesh, dtype: torch.dtype | None) -> None:
    """Make units of a layer, gathered when they compute and shared out otherwise."""
    assert isinstance(part, TextModel) and mesh.devices is not None
    settings: dict[str, Any] = {
        "mesh": mesh.devices["dp_replicate", "dp_shard"],
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
    }
    # Sequence parallelism gives views; nothing here changes one in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    layers = part.family.layers_of(part.net)
    for index in part.span:
        fully_shard(layers.get_submodule(str(index)), **settings)
    fully_shard(part, **settings)


def _copies(model: Model) -> DistributedDataParallel:
    """DDP over all but word embeddings whose gradient travels by row."""
    if isinstance(model, TextModel) and model.table.by_row:
        name = next(n for n, p in model.named_parameters() if p is model.table.weight)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [name])  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model, forward_sync_buffers=False)
