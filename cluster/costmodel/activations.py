"""What backward needs of forward, in bytes, operation by operation.

Counted from the operations that Transformers' BertLayer runs under our attention and dropout: a
linear layer keeps its input, GELU its input, a layer norm its input and two statistics, dropout a
boolean mask, the fused attention queries, keys, values, output and log-sum-exp. Under bf16 autocast
each linear layer keeps its own bf16 copy of an fp32 input, and norms stay fp32. The closed form of
Korthikanti et al. 2022 (arXiv 2205.05198, table 2), s b h (34 + 5 a s / h) in 16 bit, differs by
exactly these. Knows no torch.
"""

from dataclasses import dataclass
from typing import Literal

from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import Shape

FP32 = 4
# What becomes of attention weights: a fused kernel never has them in memory; else they are kept for
# backward, and where some are dropped, in fp32 and with what was dropped too.
Attention = Literal["fused", "kept", "dropped"]


@dataclass(frozen=True)
class MicroBatch:
    """What a device computes at once: `sequences` of `tokens` each, padding included.

    masked: tokens that a masked-lm head looks at, over all sequences. width: bytes of what linear
    layers compute, 4 for fp32 and 2 under bf16 autocast.
    """

    sequences: int
    tokens: int
    masked: int
    width: int
    attention: Attention = "fused"

    @property
    def size(self) -> int:
        """All tokens."""
        return self.sequences * self.tokens


def of_embeddings(shape: Shape, batch: MicroBatch) -> float:
    """Ids, the norm's input and statistics, the dropout's mask, and a projection's input.

    Sequence parallel begins behind them.
    """
    size = shape.embedding_size
    projected = 0 if size == shape.hidden_size else size * batch.width
    return batch.size * (10 + size * (FP32 + 1) + 2 * FP32 + projected)


def of_layer(shape: Shape, layout: Layout, batch: MicroBatch, last: bool) -> float:
    """One layer as `layout.recompute` keeps it. last: the model's last one."""
    if layout.recompute == "full":
        return _input(shape, layout, batch)
    if layout.recompute == "selective":
        return _input(shape, layout, batch) + _products(shape, layout, batch, last)
    return _everything(shape, layout, batch, last)


def of_head(shape: Shape, layout: Layout, batch: MicroBatch) -> float:
    """The head: for masked-lm mostly logits and their softmax [masked, vocabulary / tp]."""
    hidden, out, width = shape.hidden_size, shape.embedding_size, batch.width
    if shape.head != "masked-lm":
        return batch.sequences * (3 * hidden * width + hidden + 3 * shape.num_labels * FP32)
    transform = hidden * width + 3 * out * width + 2 * FP32
    words = -(-shape.vocab_size // layout.tp)
    return batch.masked * (8 + transform + words * (width + FP32))


def while_head(shape: Shape, layout: Layout, batch: MicroBatch) -> float:
    """What the loss needs on top of logits and softmax: logits in fp32, where they are not.

    Backward needs no more: the gradient of the logits stands where they stood.
    """
    if batch.width == FP32:
        return 0.0
    return batch.masked * -(-shape.vocab_size // layout.tp) * FP32


def while_layer(shape: Shape, layout: Layout, batch: MicroBatch, last: bool) -> float:
    """What backward of one layer needs on top: what it computes again, and gradients.

    At the wider of two moments. In the feed-forward: the gradient of GELU's output, that of the
    residual, and one of the weights. In attention whose weights are in memory: their gradient and
    that of the scores, when what stands behind attention has let go of what it kept.
    """
    again = _everything(shape, layout, batch, last) - of_layer(shape, layout, batch, last)
    rows = batch.sequences if last and shape.reads_cls_alone else batch.size
    hidden, wide, width = shape.hidden_size, shape.intermediate_size / layout.tp, batch.width
    most = rows * (wide * width + hidden * FP32) + hidden * wide * FP32
    if batch.attention != "fused":
        of_weight = 2 * width if batch.attention == "kept" else 2 * FP32 - width  # dropped ones go
        weights = shape.num_heads * batch.tokens * of_weight / layout.tp
        gone = _behind_attention(shape, layout, batch)
        most = max(most, rows * (weights + hidden * FP32 - gone))
    return max(0.0, again) + most


def _input(shape: Shape, layout: Layout, batch: MicroBatch) -> float:
    sequence = layout.tp if layout.sequence_parallel else 1
    return batch.size * shape.hidden_size * FP32 / sequence


def _products(shape: Shape, layout: Layout, batch: MicroBatch, last: bool) -> float:
    """What matrix products and attention gave: all that `selective` keeps behind the input.

    Row-parallel layers give whole sums on every rank of a tp group.
    """
    tp, hidden, width = layout.tp, shape.hidden_size, batch.width
    ups = 2 if shape.gated else 1
    rows = batch.sequences if last and shape.reads_cls_alone else batch.size
    a_row = (2 * hidden + ups * shape.intermediate_size) * width / tp + 2 * hidden * width
    weights = FP32 if batch.attention == "fused" else batch.tokens * width
    a_row += weights * shape.num_heads / tp
    return rows * a_row + batch.size * 2 * hidden * width / tp


def _everything(shape: Shape, layout: Layout, batch: MicroBatch, last: bool) -> float:
    """All that one layer keeps where nothing is recomputed.

    The inputs of column-parallel layers are whole on every rank: sequence parallel gathers them.
    """
    tp, hidden, width = layout.tp, shape.hidden_size, batch.width
    alone = last and shape.reads_cls_alone
    rows = batch.sequences if alone else batch.size
    copies = 1 if width == FP32 else 2 if alone else 3  # autocast casts for each linear layer
    if shape.pre_norm:  # one matrix for queries, keys and values
        copies = 1
    keys = batch.size * hidden * (copies * width + 2 * width / tp)
    if batch.attention == "fused":
        weights = shape.num_heads * FP32 / tp + width  # log-sum-exp, and the spread mask
    else:
        a_weight = FP32 + 1 + width if batch.attention == "dropped" else width
        weights = shape.num_heads * batch.tokens * a_weight / tp
    query = hidden * width / tp
    return keys + rows * (query + weights + _behind_attention(shape, layout, batch))


def _behind_attention(shape: Shape, layout: Layout, batch: MicroBatch) -> float:
    """What a token keeps from attention's output on: three inputs, GELU's, and two norms."""
    tp, hidden, width = layout.tp, shape.hidden_size, batch.width
    sequence = tp if layout.sequence_parallel else 1
    wide = ((2 if shape.gated else 1) + 1) * shape.intermediate_size * width / tp
    norms = 2 * (hidden * (FP32 + 1) + 2 * FP32) / sequence
    return hidden * width / tp + norms + hidden * width + wide
