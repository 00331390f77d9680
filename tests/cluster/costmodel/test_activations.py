"""Bytes of activations by hand, term by term."""

from dataclasses import replace

import pytest

from cluster.costmodel.activations import (
    Attention,
    MicroBatchShape,
    embedding_bytes,
    head_bytes,
    head_workspace,
    layer_bytes,
    layer_workspace,
)
from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import ModelShape

H, WIDE, HEADS, WORDS = 64, 256, 4, 1001
LM = ModelShape(H, 2, HEADS, WIDE, WORDS, 64, 2, H, "masked-lm")
CLASSIFIER = replace(LM, head="classification", num_labels=3)
ONE = Layout(dp_replicate=1)
B, S = 2, 8
FP32 = MicroBatchShape(B, S, masked=3, width=4)
BF16 = replace(FP32, width=2)


def per_token(layout: Layout = ONE, batch: MicroBatchShape = FP32, shape: ModelShape = LM) -> float:
    return layer_bytes(shape, layout, batch, last=False) / batch.num_tokens


def test_a_projection_of_the_embeddings_is_kept_in_the_width_of_linear_layers() -> None:
    ids, statistics = 10, 8
    assert embedding_bytes(LM, BF16) == B * S * (ids + 5 * H + statistics)
    narrow = replace(LM, embedding_size=16)
    assert embedding_bytes(narrow, BF16) == B * S * (ids + 5 * 16 + statistics + 16 * 2)


def test_autocast_keeps_a_copy_of_the_input_for_each_linear_layer() -> None:
    # Inputs and outputs of queries, keys, values; attention with its expanded mask; feed-forward.
    attention = 3 * 2 * H + (4 * HEADS + 2) + 2 * H
    after = 2 * (5 * H + 8) + 2 * H + 2 * 2 * WIDE
    assert per_token(batch=BF16) == 3 * 2 * H + attention + after
    # One matrix for queries, keys and values reads one copy; a gated feed-forward keeps a third.
    assert per_token(batch=BF16, shape=replace(LM, pre_norm=True)) == 2 * H + attention + after
    gated = per_token(batch=BF16, shape=replace(LM, gated=True))
    assert gated - per_token(batch=BF16) == 2 * WIDE


def test_the_last_layer_of_a_classifier_keeps_one_row_a_sequence() -> None:
    of_all, of_cls = (layer_bytes(CLASSIFIER, ONE, FP32, last) for last in (False, True))
    row = 4 * H + (4 * HEADS + 4) + 2 * 4 * H + 2 * (5 * H + 8) + 2 * 4 * WIDE
    assert of_all == B * S * (3 * 4 * H + row)
    assert of_cls == B * S * 3 * 4 * H + B * row
    # Under autocast the input of all tokens has a copy for keys and one for values.
    cls_row = 2 * H + (4 * HEADS + 2) + 2 * 2 * H + 2 * (5 * H + 8) + 2 * 2 * WIDE
    assert layer_bytes(CLASSIFIER, ONE, BF16, True) == B * S * (2 + 2) * 2 * H + B * cls_row
    assert layer_bytes(LM, ONE, FP32, last=True) == layer_bytes(LM, ONE, FP32, last=False)


def test_attention_weights_are_kept_for_every_pair_of_tokens() -> None:
    fused = per_token() - 4 * HEADS - 4
    assert per_token(batch=replace(FP32, attention="kept")) == fused + HEADS * S * 4
    # With dropout the weights in fp32, the mask, and the result.
    assert per_token(batch=replace(FP32, attention="dropped")) == fused + HEADS * S * (4 + 1 + 4)
    kept, selective = replace(BF16, attention="kept"), Layout(dp_replicate=1, recompute="selective")
    saved = per_token(selective, kept) - per_token(selective, BF16)
    assert saved == HEADS * (S * 2 - 4)


def test_the_logits_of_a_rank_are_its_share_of_the_words_rounded_up() -> None:
    transform = H * 2 + 3 * H * 2 + 8
    for tp, words in ((1, 1001), (2, 501)):
        layout = Layout(dp_replicate=1, tp=tp)
        assert head_bytes(LM, layout, BF16) == 3 * (8 + transform + words * (2 + 4))
        assert head_workspace(LM, layout, BF16) == 3 * words * 4
        assert head_workspace(LM, layout, FP32) == 0, "they are in fp32 already"
    assert head_bytes(CLASSIFIER, ONE, BF16) == B * (3 * H * 2 + H + 3 * 3 * 4)


def test_backward_computes_again_what_forward_did_not_keep() -> None:
    gradients = B * S * (WIDE * 4 + H * 4) + H * WIDE * 4
    assert layer_workspace(LM, ONE, FP32, last=False) == gradients
    full = Layout(dp_replicate=1, recompute="full")
    again = layer_bytes(LM, ONE, FP32, False) - layer_bytes(LM, full, FP32, False)
    assert layer_workspace(LM, full, FP32, last=False) == again + gradients
    split = layer_workspace(LM, Layout(dp_replicate=1, tp=2), FP32, last=False)
    assert split == B * S * (WIDE / 2 * 4 + H * 4) + H * WIDE / 2 * 4


@pytest.mark.parametrize(("attention", "of_weight"), [("kept", 2 * 2), ("dropped", 2 * 4 - 2)])
def test_gradients_of_long_attention_outweigh_those_of_the_feed_forward(
    attention: Attention, of_weight: int
) -> None:
    long = MicroBatchShape(B, 4096, 0, 2, attention)
    freed = 2 * H + 2 * (5 * H + 8) + 2 * H + 2 * 2 * WIDE
    found = layer_workspace(LM, ONE, long, last=False)
    assert found == long.num_tokens * (HEADS * 4096 * of_weight + 4 * H - freed)
    short = replace(long, tokens=S)
    feed_forward = layer_workspace(LM, ONE, replace(short, attention="fused"), last=False)
    assert layer_workspace(LM, ONE, short, last=False) == feed_forward
