"""Bytes of activations that backward needs, operation by operation.

Counted from the operations that Transformers' BertLayer runs under our attention and dropout: a
linear layer keeps its input, GELU its input, a layer norm its input and two statistics, dropout a
boolean mask, the fused attention queries, keys, values, output and log-sum-exp. Under bf16 autocast
each linear layer keeps its own bf16 copy of an fp32 input, and norms stay fp32. The closed form of
Korthikanti et al. 2022 (arXiv 2205.05198, table 2), s b h (34 + 5 a s / h) in 16 bit, differs by
exactly these.
"""

from dataclasses import dataclass
from typing import Literal

from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import ModelShape

FP32 = 4
# Attention weights: a fused kernel never has them in memory; else they are kept for backward, and
# with attention dropout in fp32, beside the mask and the result.
Attention = Literal["fused", "kept", "dropped"]


@dataclass(frozen=True)
class MicroBatchShape:
    """The `sequences` of `tokens` each, in the mean, that a device computes at once.

    masked: tokens that a masked-lm head predicts, over all sequences. width: bytes of an output of
    linear layers, 4 for fp32 and 2 under bf16 autocast. slots: of the rows that texts of different
    lengths are padded into for attention, where it needs rows; else 0.
    """

    sequences: int
    tokens: int
    masked: int
    width: int
    attention: Attention = "fused"
    slots: int = 0

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return self.sequences * self.tokens


def embedding_bytes(shape: ModelShape, batch: MicroBatchShape) -> float:
    """Return the bytes of ids, the norm's input and statistics, the dropout mask, a projection.

    Sequence parallelism begins after them.
    """
    size = shape.embedding_size
    projected = 0 if size == shape.hidden_size else size * batch.width
    return batch.num_tokens * (10 + size * (FP32 + 1) + 2 * FP32 + projected)


def layer_bytes(shape: ModelShape, layout: Layout, batch: MicroBatchShape, last: bool) -> float:
    """Return what `layout.recompute` keeps of one layer. last: it is the model's last layer."""
    if layout.recompute == "full":
        return _layer_input(shape, layout, batch)
    if layout.recompute == "selective":
        outputs = _matmul_outputs(shape, layout, batch, last)
        return _layer_input(shape, layout, batch) + outputs
    return _all_activations(shape, layout, batch, last)


def head_bytes(shape: ModelShape, layout: Layout, batch: MicroBatchShape) -> float:
    """Return the head's bytes, of masked-lm mostly logits and softmax [masked, vocabulary / tp]."""
    hidden, out, width = shape.hidden_size, shape.embedding_size, batch.width
    if shape.head != "masked-lm":
        return batch.sequences * (3 * hidden * width + hidden + 3 * shape.num_labels * FP32)
    transform = hidden * width + 3 * out * width + 2 * FP32
    words = -(-shape.vocab_size // layout.tp)
    return batch.masked * (8 + transform + words * (width + FP32))


def head_workspace(shape: ModelShape, layout: Layout, batch: MicroBatchShape) -> float:
    """Return what the loss needs beside logits and softmax: logits in fp32, where they are not.

    Backward needs no more: the gradient of the logits takes their place.
    """
    if batch.width == FP32:
        return 0.0
    return batch.masked * -(-shape.vocab_size // layout.tp) * FP32


def layer_workspace(shape: ModelShape, layout: Layout, batch: MicroBatchShape, last: bool) -> float:
    """Return what backward of one layer needs besides: recomputed activations, and gradients.

    The larger of two moments. In the feed-forward: the gradients of GELU's output, of the residual
    and of one weight. In attention that is not fused: the gradients of its weights and scores, when
    the activations of what follows attention are freed already.
    """
    again = _all_activations(shape, layout, batch, last) - layer_bytes(shape, layout, batch, last)
    rows = batch.sequences if last and shape.reads_cls_alone else batch.num_tokens
    hidden, wide, width = shape.hidden_size, shape.intermediate_size / layout.tp, batch.width
    most = rows * (wide * width + hidden * FP32) + hidden * wide * FP32
    if batch.attention != "fused":
        of_weight = (
            2 * width if batch.attention == "kept" else 2 * FP32 - width
        )  # dropout's is freed
        weights = shape.num_heads * batch.tokens * of_weight / layout.tp
        freed = _bytes_after_attention(shape, layout, batch)
        most = max(most, rows * (weights + hidden * FP32 - freed))
    return max(0.0, again) + most


def _layer_input(shape: ModelShape, layout: Layout, batch: MicroBatchShape) -> float:
    sequence = layout.tp if layout.sequence_parallel else 1
    return batch.num_tokens * shape.hidden_size * FP32 / sequence


def _matmul_outputs(shape: ModelShape, layout: Layout, batch: MicroBatchShape, last: bool) -> float:
    """Return the outputs of matmuls and attention, which `selective` keeps beside the input.

    Row-parallel layers have whole outputs on every rank of a tp group.
    """
    tp, hidden, width = layout.tp, shape.hidden_size, batch.width
    ups = 2 if shape.gated else 1
    rows = batch.sequences if last and shape.reads_cls_alone else batch.num_tokens
    a_row = (2 * hidden + ups * shape.intermediate_size) * width / tp + 2 * hidden * width
    weights = FP32 if batch.attention == "fused" else batch.tokens * width
    a_row += weights * shape.num_heads / tp
    return rows * a_row + batch.num_tokens * 2 * hidden * width / tp


def _all_activations(
    shape: ModelShape, layout: Layout, batch: MicroBatchShape, last: bool
) -> float:
    """Return what one layer keeps where nothing is recomputed.

    Inputs of column-parallel layers are whole on every rank: sequence parallelism gathers them.
    """
    tp, hidden, width = layout.tp, shape.hidden_size, batch.width
    alone = last and shape.reads_cls_alone
    rows = batch.sequences if alone else batch.num_tokens
    copies = 1 if width == FP32 else 2 if alone else 3  # autocast casts for each linear layer
    if shape.pre_norm:  # one matrix for queries, keys and values
        copies = 1
    keys = batch.num_tokens * hidden * (copies * width + 2 * width / tp)
    if batch.attention == "fused":
        weights = shape.num_heads * FP32 / tp + width  # log-sum-exp, and the expanded mask
    else:
        a_weight = FP32 + 1 + width if batch.attention == "dropped" else width
        weights = shape.num_heads * batch.tokens * a_weight / tp
    query = hidden * width / tp
    if batch.slots and not alone:  # queries, keys and values are padded, and outputs kept twice
        keys += hidden * width * (4 * batch.slots - 3 * batch.num_tokens) / tp
    return keys + rows * (query + weights + _bytes_after_attention(shape, layout, batch))


def _bytes_after_attention(shape: ModelShape, layout: Layout, batch: MicroBatchShape) -> float:
    """Return what a token keeps after attention: its output, the feed-forward, and two norms."""
    tp, hidden, width = layout.tp, shape.hidden_size, batch.width
    sequence = tp if layout.sequence_parallel else 1
    wide = ((2 if shape.gated else 1) + 1) * shape.intermediate_size * width / tp
    norms = 2 * (hidden * (FP32 + 1) + 2 * FP32) / sequence
    return hidden * width / tp + norms + hidden * width + wide
