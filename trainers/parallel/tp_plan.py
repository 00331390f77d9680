"""The tensor-parallel plan of the BERT family: a parallel style for each module name.

Attention heads and the feed-forward are split by column, then by row, with one sum over the ranks
each (Shoeybi et al. 2019, arXiv 1909.08053, section 3); the vocabulary is split in the embedding
and in the masked-language head. With sequence parallelism each rank holds a chunk of the sequence
between them (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2).
"""

from torch.distributed.tensor.parallel import ParallelStyle

from trainers.distributed.collectives import all_gather, identity, keep_rank0, local_chunk
from trainers.distributed.tensor_parallel import (
    ColwiseParallel,
    PrepareInput,
    Redistribute,
    RowwiseParallel,
    SequenceParallelNorm,
    VocabParallelEmbedding,
)
from trainers.models.bert import ClsOnlyLayer, TextModel
from trainers.models.families import ModelFamily

TensorParallelPlan = dict[str, ParallelStyle]


def build_tp_plan(stage: TextModel, sequence_parallel: bool) -> TensorParallelPlan:
    """Return the plan of a model or a stage of one, by module name."""
    family = stage.family
    plan: TensorParallelPlan = {}
    layers = f"net.{family.encoder}.{family.layers}"
    for index in stage.layer_range:
        layer = f"{layers}.{index}"
        cls_only = isinstance(stage.get_submodule(layer), ClsOnlyLayer)
        layer_plan = (_build_cls_layer_plan if cls_only else _build_layer_plan)(
            family, sequence_parallel
        )
        plan |= {f"{layer}.{name}": style for name, style in layer_plan.items()}
    if stage.is_first:
        plan[f"net.{family.encoder}.embeddings.word_embeddings"] = VocabParallelEmbedding()
    if stage.is_first and sequence_parallel:
        plan["sp_entry"] = Redistribute(local_chunk, all_gather)
    if stage.is_last and sequence_parallel and not stage.is_cls_only:
        plan["sp_exit"] = Redistribute(all_gather, local_chunk)
    if stage.is_last and stage.masked_lm:
        plan[stage.lm_head_name] = ColwiseParallel(sequence_parallel=False)
    return plan


def _build_layer_plan(family: ModelFamily, sequence_parallel: bool) -> TensorParallelPlan:
    plan: TensorParallelPlan = {family.attention: PrepareInput(sequence_parallel)}
    for name in family.colwise:
        # Query, key and value share one input, which the attention module prepares once.
        prepare_input = not name.startswith(f"{family.attention}.")
        plan[name] = ColwiseParallel(sequence_parallel, prepare_input)
    plan |= {name: RowwiseParallel(sequence_parallel) for name in family.rowwise}
    if sequence_parallel:
        plan |= {name: SequenceParallelNorm() for name in family.norms}
    return plan


def _build_cls_layer_plan(family: ModelFamily, sequence_parallel: bool) -> TensorParallelPlan:
    """Return the plan of a `ClsOnlyLayer`: chunks come in, one whole position goes out."""
    plan: TensorParallelPlan = {
        "tp_input": PrepareInput(sequence_parallel),
        # [CLS] also takes the residual path, which all ranks compute alike: without this the sum of
        # gradients in `tp_input` would count that path once for each rank.
        "tp_cls": Redistribute(identity, keep_rank0),
    }
    for name in family.colwise:
        prepare_input = not name.startswith(f"{family.attention}.")
        plan[name] = ColwiseParallel(sequence_parallel=False, prepare_input=prepare_input)
    return plan | {name: RowwiseParallel(sequence_parallel=False) for name in family.rowwise}
