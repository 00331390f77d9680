"""Memory by arithmetic against memory in fact: every tensor of a training step, as it lives."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from cluster.costmodel.layout import Layout
from cluster.costmodel.memory import (
    MemoryBreakdown,
    TrainingSetup,
    memory_by_rank,
    micro_batches_in_flight,
    peak_memory,
)
from cluster.costmodel.model_shape import ModelShape, Recompute, split_into_stages
from trainers.data.microbatch import sample_keys
from trainers.distributed.vocab_parallel_loss import VocabShard, token_losses
from trainers.models.bert import TextModel
from trainers.models.packed import PackedTexts
from trainers.models.shape import shape_from_config
from trainers.planning.memory_tracker import MemoryTracker

BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "masked-lm")
ONE = Layout(dp_replicate=1)
WORDS = 2003  # so that logits weigh something


def measured(
    task: str, regime: TrainingSetup, recompute: Recompute, num_layers: int = 3
) -> tuple[int, int, int, ModelShape]:
    """Bytes (between steps, at the end of a forward, at the peak) of real steps of two
    micro-batches, and the shape that took them."""
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=regime.tokens,
        attention_probs_dropout_prob=0.1 if regime.attention == "dropped" else 0.0,
    )
    torch.manual_seed(0)
    lm = task == "masked-lm"
    model = TextModel((BertForMaskedLM if lm else BertForSequenceClassification)(config)).train()
    model.recompute = recompute
    model.set_fused_attention(regime.attention == "fused")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    b, s = regime.sequences, regime.tokens
    ids = torch.randint(5, WORDS, (1, b * s))
    keys = torch.from_numpy(sample_keys(0, 0, np.arange(b)))
    reads = torch.arange(b * (regime.masked or 0)) if lm else None
    targets = torch.zeros(b if reads is None else len(reads), dtype=torch.long)
    forward = 0
    with MemoryTracker() as meter:
        meter.mark_tensors(model.parameters(), "parameters")
        for _step in range(2):
            between, meter.peak = meter.total, 0
            for _micro_batch in range(2):
                packed = PackedTexts.from_lengths([s] * b, reads=reads, keys=keys)
                with torch.autocast("cpu", torch.bfloat16, enabled=regime.precision == "bf16"):
                    logits = model(ids, packed)
                if lm:
                    loss = token_losses(logits, targets, VocabShard())[0].mean()
                else:
                    loss = torch.nn.functional.cross_entropy(logits.float(), targets)
                forward = meter.total
                del logits  # as the loop does
                loss.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad()
    return between, forward, meter.peak, shape_from_config(config, task, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_memory_is_what_a_real_step_takes(task: str, recompute: Recompute, precision: str) -> None:
    regime = TrainingSetup(6, 48, 2, precision, "adamw", masked=7)
    between, forward, most, shape = measured(task, regime, recompute)
    (memory,) = memory_by_rank(shape, Layout(dp_replicate=1, recompute=recompute), regime)
    table = 4 * WORDS * 64 if task == "classification" else 0  # whose gradient's memory is kept
    assert memory.parameters + memory.moments + table == pytest.approx(between, rel=0.02)
    found = memory.states + memory.casts + memory.activations + memory.buffers
    assert found == pytest.approx(forward, rel=0.01)
    assert memory.total == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_logits_are_counted_as_often_as_they_live(recompute: Recompute, precision: str) -> None:
    """Where nearly all tokens are guessed, they are most of the memory."""
    regime = TrainingSetup(6, 48, 2, precision, "adamw", masked=40)
    _, _, most, shape = measured("masked-lm", regime, recompute)
    (memory,) = memory_by_rank(shape, Layout(dp_replicate=1, recompute=recompute), regime)
    assert memory.total == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize(
    ("recompute", "tokens"),
    # `selective` holds on to more of long texts: 8% at 320 tokens.
    [("none", 64), ("selective", 64), ("full", 64), ("none", 320), ("full", 320)],
)
def test_dropped_attention_weights_are_counted(recompute: Recompute, tokens: int) -> None:
    regime = TrainingSetup(4, tokens, 2, "fp32", "adamw", attention="dropped", masked=9)
    _, forward, most, shape = measured("masked-lm", regime, recompute)
    (memory,) = memory_by_rank(shape, Layout(dp_replicate=1, recompute=recompute), regime)
    found = memory.states + memory.activations + memory.buffers  # tables of dropout are there
    assert found == pytest.approx(forward, rel=0.02)
    assert memory.total == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("tokens", [48, 320])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_attention_weights_that_are_kept_are_counted(
    task: str, recompute: Recompute, tokens: int
) -> None:
    regime = TrainingSetup(4, tokens, 2, "bf16", "adamw", attention="kept", masked=7)
    _, forward, most, shape = measured(task, regime, recompute)
    (memory,) = memory_by_rank(shape, Layout(dp_replicate=1, recompute=recompute), regime)
    found = memory.states + memory.casts + memory.activations + memory.buffers
    assert found == pytest.approx(forward, rel=0.02)
    assert memory.total == pytest.approx(most, rel=0.05)


def test_one_micro_batch_meets_no_gradients() -> None:
    (two,) = memory_by_rank(BASE, ONE, TrainingSetup(8, 128, 2))
    (one,) = memory_by_rank(BASE, ONE, TrainingSetup(8, 128, 1))
    assert one.total < two.total
    assert one.activations == two.activations or one.gradients == two.gradients


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd", 0), ("momentum", 1), ("lamb", 2)])
def test_states_by_hand(optimizer: str, moments: int) -> None:
    (memory,) = memory_by_rank(BASE, ONE, TrainingSetup(1, 128, 1, "fp32", optimizer))
    assert memory.parameters == memory.gradients == 4 * BASE.num_parameters
    assert memory.moments == 4 * moments * BASE.num_parameters


def test_shards_share_states_and_gather_a_layer_at_a_time() -> None:
    regime = TrainingSetup(4, 128, 2)
    (whole,) = memory_by_rank(BASE, ONE, regime)
    (shared,) = memory_by_rank(BASE, Layout(dp_replicate=1, dp_shard=4), regime)
    assert shared.states == pytest.approx(whole.states / 4)
    ends = BASE.embedding_parameters + BASE.head_parameters
    assert shared.gathered == 4 * (3 * ends + 3 * BASE.layer_parameters)
    assert shared.activations == whole.activations


def test_tensor_parallel_divides_matrices_but_not_norms() -> None:
    (memory,) = memory_by_rank(BASE, Layout(dp_replicate=1, tp=2), TrainingSetup(4, 128))
    h, wide = 768, 3072
    layer = (4 * h * h + 2 * h * wide + 3 * h + wide) / 2 + 2 * h + 4 * h
    embeddings = (30522 // 2 + 514) * h + 2 * h
    head = h * h + 3 * h + 30522 // 2
    assert memory.parameters == 4 * (12 * layer + embeddings + head)


def test_activations_of_a_layer_by_hand() -> None:
    """fp32: 34 h + 8 i + 16 + 4 a + 4 bytes a token; the sum of what each operation keeps."""
    b, s, h, wide = 2, 64, 768, 3072

    def kept(num_layers: int, **degrees: Any) -> float:
        shape = ModelShape(h, num_layers, 12, wide, 16, 64, 2, h, "masked-lm")
        layout = Layout(dp_replicate=1, **degrees)
        return memory_by_rank(shape, layout, TrainingSetup(b, s, 2))[0].activations

    def layer(**degrees: Any) -> float:
        return (kept(4, **degrees) - kept(3, **degrees)) / (b * s)

    assert layer() == 34 * h + 8 * wide + 16 + 4 * 12 + 4
    assert layer(recompute="full") == 4 * h
    assert layer(recompute="selective") == 28 * h + 4 * wide + 4 * 12
    # Attention and feed-forward are divided; inputs, norms and dropouts are not.
    assert layer(tp=2) == (16 * h + 8 * wide + 4 * 12) / 2 + 18 * h + 16 + 4
    split = layer(tp=2, sequence_parallel=True)
    assert split == (26 * h + 8 * wide + 4 * 12 + 16) / 2 + 8 * h + 4


@pytest.mark.parametrize("num_micro_batches", [1, 3, 100])
def test_a_pipeline_holds_what_its_schedule_has_in_flight(num_micro_batches: int) -> None:
    held = [micro_batches_in_flight(Layout(pp=4), num_micro_batches, rank) for rank in range(4)]
    assert held == [min(num_micro_batches, n) for n in (4, 3, 2, 1)]


def test_interleaving_holds_more_by_the_published_factor() -> None:
    p, v = 4, 3
    held = micro_batches_in_flight(Layout(pp=p, stages_per_rank=v), 100, 0)
    assert held == pytest.approx(p * (1 + (p - 1) / (p * v)))


def test_a_pipeline_shares_out_all_parameters_and_copies_the_tied_table() -> None:
    memories = memory_by_rank(BASE, Layout(dp_replicate=1, pp=4), TrainingSetup(4, 128, 8))
    assert len(memories) == 4
    copied = 30522 * 768
    held = sum(memory.parameters for memory in memories)
    assert held == 4 * (BASE.num_parameters + copied)
    assert memories[0].activations > memories[1].activations


@pytest.mark.parametrize("layout", [
    Layout(dp_replicate=2), Layout(dp_replicate=1, dp_shard=8), Layout(dp_replicate=2, tp=4),
    Layout(dp_replicate=1, pp=4, tp=2, sequence_parallel=True, recompute="full"),
    Layout(dp_replicate=2, dp_shard=2, pp=2, tp=2, stages_per_rank=3, recompute="selective"),
])  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_layout_has_a_positive_sum(layout: Layout, precision: str) -> None:
    regime = TrainingSetup(8, 128, 8, precision)
    memories = memory_by_rank(BASE, layout, regime)
    assert len(memories) == layout.pp
    assert all(isinstance(m, MemoryBreakdown) and min(vars(m).values()) >= 0 for m in memories)
    assert peak_memory(BASE, layout, regime) == max(m.total for m in memories)
    assert sum(map(len, split_into_stages(BASE, layout.num_stages))) == 12
