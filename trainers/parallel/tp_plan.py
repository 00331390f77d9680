"""Tensor parallelism of the BERT family: which module is split how, as plans of module names.

Attention heads and the feed-forward are split by column, then by row, with one sum over the ranks
each (Shoeybi et al. 2019, arXiv 1909.08053, section 3); the vocabulary is split in the embedding
and in the masked-language head. With sequence parallelism what lies between holds a part of the
sequence on each rank (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2).
"""

from torch.distributed.tensor.parallel import ParallelStyle

from trainers.distributed.tensor_parallel import (
    Columns,
    Entrance,
    Norm,
    Rows,
    SharedRows,
    counted_once,
    to_parts,
    to_whole,
)
from trainers.models.bert import ClsOnlyLayer, TextModel
from trainers.models.families import Family

Plan = dict[str, ParallelStyle]


def plan(part: TextModel, sequence_parallel: bool) -> Plan:
    """The plan of a model or a part of one, by module name."""
    family = part.family
    found: Plan = {}
    layers = f"net.{family.encoder}.{family.layers}"
    for index in part.span:
        layer = f"{layers}.{index}"
        cls_only = isinstance(part.get_submodule(layer), ClsOnlyLayer)
        of_layer = (_cls_only if cls_only else _layer)(family, sequence_parallel)
        found |= {f"{layer}.{name}": style for name, style in of_layer.items()}
    if part.is_first:
        found[f"net.{family.encoder}.embeddings.word_embeddings"] = SharedRows()
    if part.is_first and sequence_parallel:
        found["entered"] = to_parts()
    if part.is_last and sequence_parallel and not part.reads_cls_alone:
        found["left"] = to_whole()
    if part.is_last and part.masked_lm:
        found[part.decoder] = Columns(parted=False)
    return found


def _layer(family: Family, parted: bool) -> Plan:
    """One layer. parted: whether it stands between parts of sequences."""
    found: Plan = {family.attention: Entrance(parted)}
    for name in family.columns:
        found[name] = Columns(parted, entrance=not name.startswith(f"{family.attention}."))
    found |= {name: Rows(parted) for name in family.rows}
    return found | ({name: Norm() for name in family.norms} if parted else {})


def _cls_only(family: Family, parted: bool) -> Plan:
    """A last layer that computes one position: whole sequences come in, no part goes out."""
    found: Plan = {"whole": Entrance(parted), "cls": counted_once()}
    for name in family.columns:
        found[name] = Columns(False, entrance=not name.startswith(f"{family.attention}."))
    return found | {name: Rows(False) for name in family.rows}
