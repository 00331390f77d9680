"""Apply a layout to a model: pipeline stages, then tensor parallelism, then FSDP or DDP."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from cluster.costmodel.model_shape import split_into_stages
from trainers.distributed.dtensor import reduce_partial_gradients, squared_norm, to_local
from trainers.distributed.mesh import Mesh
from trainers.distributed.vocab_parallel_loss import VocabShard
from trainers.models.bert import TextModel
from trainers.models.build import Model
from trainers.models.dropout import KeyedDropout
from trainers.models.shape import shape_from_config
from trainers.parallel.tp_plan import build_tp_plan

Materialize = Callable[[Model], object]


class ParallelModel:
    """The stages of a model on this rank, ready to compute with, and the sync of their gradients.

    stage_modules: by stage, unwrapped, to read weights from. wrapped_modules: the same, to call.
    first_trained_stage: of all ranks; those below it are frozen, and have no backward.
    """

    def __init__(
        self,
        mesh: Mesh,
        stage_modules: dict[int, Model],
        materialize: Materialize,
        dtype: torch.dtype | None = None,
        first_trained_stage: int = 0,
    ) -> None:
        self.mesh, self.stage_modules = mesh, stage_modules
        self.first_trained_stage = first_trained_stage
        self.wrapped_modules: dict[int, nn.Module] = {
            stage: _wrap_data_parallel(module, mesh, materialize, dtype)
            for stage, module in stage_modules.items()
        }
        self._tied_group = mesh.ends_group if self._has_trained_tie() else None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield every parameter of this rank once, by its name in the whole model.

        A tied table that the first and the last stage both hold has the same name on both.
        """
        for module in self.stage_modules.values():
            tied = module.tied_weights if isinstance(module, TextModel) else {}
            for name, parameter in module.named_parameters():
                inner = name.removeprefix("net.")
                yield f"net.{tied[inner]}" if inner in tied else name, parameter

    def train(self, mode: bool = True) -> None:
        """Set training or evaluation mode."""
        for module in self.wrapped_modules.values():
            module.train(mode)
            if isinstance(module, FSDPModule):
                # The root unit stays gathered after forward, for a backward that an evaluation
                # does not have. Whoever reads parameters next must find shards.
                module.reshard()

    def set_fused_attention(self, fused: bool) -> None:
        """Set whether training uses torch's fused attention."""
        for module in self.stage_modules.values():
            if isinstance(module, TextModel):
                module.set_fused_attention(fused)

    def set_gradient_sync(self, stage: int, sync: bool) -> None:
        """Set whether the next backward of `stage` reduces gradients; only a step's last should.

        FSDP reduce-scatters after every backward all the same, so that no rank holds a whole
        gradient; only the all-reduce over `dp_replicate` waits.
        """
        module = self.wrapped_modules[stage]
        if isinstance(module, DistributedDataParallel):
            module.require_backward_grad_sync = sync  # read by forward and by backward
        elif isinstance(module, FSDPModule):
            module.set_requires_all_reduce(sync)
            module.set_is_last_backward(sync)

    @property
    def has_row_gradients(self) -> bool:
        """Whether the gradient of the word embeddings is reduced row by row."""
        first = self.stage_modules.get(0)
        if not (self.mesh.is_data_parallel and self.mesh.layout.dp > 1):
            return False
        table = first.word_embeddings if isinstance(first, TextModel) else None
        return table is not None and table.row_gradients and table.weight.requires_grad

    @property
    def vocab_shard(self) -> VocabShard:
        """The part of the vocabulary whose logits this rank computes."""
        model, layout = next(iter(self.stage_modules.values())), self.mesh.layout
        if layout.tp == 1 or not isinstance(model, TextModel):
            return VocabShard()
        assert self.mesh.device_mesh is not None
        size = -(-model.config.vocab_size // layout.tp)  # as torch cuts: the last ones are smaller
        offset = min(model.config.vocab_size, size * self.mesh.tp_rank)
        return VocabShard(offset, self.mesh.device_mesh.get_group("tp"))

    def finalize_gradients(self, ids: Tensor | None) -> None:
        """Do the reductions that backward leaves open, at the end of a step.

        ids: [n] the distinct tokens of the global batch; None unless `has_row_gradients`.
        """
        if ids is not None:
            first = self.stage_modules[0]
            assert isinstance(first, TextModel)
            first.word_embeddings.average_gradient(ids)
        reduce_partial_gradients(parameter for _, parameter in self.named_parameters())
        if self._tied_group is not None:
            gradient = self._tied_parameter().grad
            assert gradient is not None
            dist.all_reduce(to_local(gradient), group=self._tied_group)
        for stage, module in self.wrapped_modules.items():
            if stage < self.first_trained_stage and isinstance(module, FSDPModule):
                # FSDP ends an iteration, and frees what it gathered, in a backward.
                module._get_fsdp_state()._root_post_backward_final_callback()

    def clip_gradients(self, limit: float | None, is_immediate: bool = True) -> Tensor:
        """Scale all gradients to a global norm of at most `limit`; return the norm before.

        is_immediate: the norm may be looked at, which makes the host wait for an accelerator.
        """
        skipped = None  # a tied table is on the first and the last stage, and must count once
        if self._tied_group is not None and 0 in self.stage_modules:
            skipped = self._tied_parameter()
        parameters = [p for _, p in self.named_parameters()]
        counted = [p.grad for p in parameters if p is not skipped and p.grad is not None]
        device = parameters[0].device
        norm = squared_norm(counted, self.mesh.ranks_per_stage, device).sqrt()
        gradients = [to_local(p.grad) for p in parameters if p.grad is not None]
        if gradients and limit is not None and not (is_immediate and norm <= limit):
            torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _has_trained_tie(self) -> bool:
        """Whether this rank holds an end of a tied table that is trained."""
        if self.mesh.ends_group is None:
            return False
        modules = self.stage_modules.values()
        tied = any(isinstance(module, TextModel) and module.tied_weights for module in modules)
        return tied and self._tied_parameter().requires_grad

    def _tied_parameter(self) -> nn.Parameter:
        """Return the vocabulary table that the first and the last stage both hold."""
        for module in self.stage_modules.values():
            assert isinstance(module, TextModel)
            for name, source in module.tied_weights.items():
                end = source if module.is_first else name if module.is_last else None
                if end is not None and name.endswith("weight"):
                    return module.net.get_parameter(end)
        raise AssertionError("this rank holds no end of the model")


def parallelize(
    model: Model, mesh: Mesh, materialize: Materialize, dtype: torch.dtype | None = None
) -> ParallelModel:
    """Apply the layout of `mesh` to `model`, which is in host memory or on the meta device.

    materialize: moves a stage, once it is cut down to this rank's parameters, to the device with
    its weights. dtype: what FSDP gathers parameters in; None is their own.
    """
    layout = mesh.layout
    if not isinstance(model, TextModel):
        return ParallelModel(mesh, {0: model}, materialize)
    model.recompute = layout.recompute
    stages: dict[int, Model] = {0: model}
    first_trained = 0
    if layout.pp > 1:
        task = "masked-lm" if model.masked_lm else "classification"
        labels = 0 if model.masked_lm else model.config.num_labels
        shape = shape_from_config(model.config, task, labels)
        layer_ranges = split_into_stages(shape, layout.num_stages)
        every = [model.extract_stage(layers) for layers in layer_ranges]
        first_trained = next(stage for stage, part in enumerate(every) if _is_trained(part))
        stages = {s: every[s] for s in range(mesh.pp_rank, layout.num_stages, layout.pp)}
    for module in stages.values():
        assert isinstance(module, TextModel)
        if layout.tp > 1:
            _apply_tensor_parallel(module, mesh)
        if module.is_first and not mesh.is_data_parallel:
            module.word_embeddings.row_gradients = False
    return ParallelModel(mesh, stages, materialize, dtype, first_trained)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _apply_tensor_parallel(stage: TextModel, mesh: Mesh) -> None:
    assert mesh.device_mesh is not None
    layout = mesh.layout
    plan = build_tp_plan(stage, layout.sequence_parallel)
    parallelize_module(stage, mesh.device_mesh["tp"], plan, src_data_rank=None)
    stage.tie_weights()
    # A mask is keyed by position in the whole tensor, so a dropout must know which part it sees:
    # of attention weights some heads, and with sequence parallelism elsewhere some positions.
    layers = stage.family.get_layers(stage.net)
    for index in stage.layer_range:
        layer = layers.get_submodule(str(index))
        attention_dropout = layer.get_submodule(f"{stage.family.attention}.dropout")
        computes_cls = stage.is_cls_only and index == stage.num_layers - 1
        chunked = layout.sequence_parallel and not computes_cls
        for module in layer.modules():
            if isinstance(module, KeyedDropout) and (module is attention_dropout or chunked):
                module.shard = (mesh.tp_rank, layout.tp)


def _wrap_data_parallel(
    stage: Model, mesh: Mesh, materialize: Materialize, dtype: torch.dtype | None
) -> nn.Module:
    """Materialize `stage` and average its gradients over the data-parallel ranks."""
    sharded = mesh.layout.dp > 1 and not mesh.is_data_parallel
    if sharded:
        _apply_fsdp(stage, mesh, dtype)  # first, so that only its shards reach the device
    materialize(stage)
    return _wrap_ddp(stage) if mesh.layout.dp > 1 and not sharded else stage


def _apply_fsdp(stage: Model, mesh: Mesh, dtype: torch.dtype | None) -> None:
    """Make every layer an FSDP unit, and the rest of the stage another."""
    assert isinstance(stage, TextModel) and mesh.device_mesh is not None
    settings: dict[str, Any] = {
        "mesh": mesh.device_mesh["dp_replicate", "dp_shard"],
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
    }
    # Sequence parallelism returns views; nothing here changes one in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    layers = stage.family.get_layers(stage.net)
    for index in stage.layer_range:
        fully_shard(layers.get_submodule(str(index)), **settings)
    fully_shard(stage, **settings)


def _wrap_ddp(model: Model) -> DistributedDataParallel:
    """Wrap `model` in DDP, but for word embeddings whose gradient is reduced row by row."""
    if isinstance(model, TextModel) and model.word_embeddings.row_gradients:
        name = next(n for n, p in model.named_parameters() if p is model.word_embeddings.weight)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [name])  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model, forward_sync_buffers=False)
