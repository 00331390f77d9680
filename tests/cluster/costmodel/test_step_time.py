"""The cost model by hand: roofs, waves, traffic, layouts, optimizers."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.costmodel.collectives import all_reduce_seconds
from cluster.costmodel.compute import (
    AUTOCAST_WIDTH,
    ComputeBatch,
    DeviceModel,
    predict_forward,
    sustained_flops,
)
from cluster.costmodel.constants import CALIBRATED, MEMORY_SHARE, STACKS, SUSTAINED, TORCH
from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.step_time import OPTIMIZER_BYTES, StepTime, StepWork, predict_step
from cluster.hardware import catalog
from cluster.hardware.types import Topology

KNOWN = catalog.load_catalog()
A100, T4 = KNOWN.get_accelerator("A100-SXM4-80GB"), KNOWN.get_accelerator("T4")
BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "masked-lm")
CLASSES = replace(BASE, head="classification", num_labels=2)
NODE = Topology(A100, 8, 1, 200e9)
ALONE = Topology(A100, 1, 1, None)
WORK = StepWork(BASE, 256, 32, 128.0, 128.0, 19.2)
IDEAL = replace(CALIBRATED, embeddings=0.0, wave=0.0, launch_seconds=0.0, waiting=0.0, overlap=0.0)


def of(work: StepWork, topology: Topology = NODE, **degrees: object) -> StepTime:
    degrees.setdefault("dp_replicate", topology.devices)
    return predict_step(work, Layout(**degrees), topology, TORCH, IDEAL)  # type: ignore[arg-type]


def test_units_or_watts_whichever_allow_less() -> None:
    strong = replace(A100, watts=10_000.0)
    assert sustained_flops(strong, "bf16", CALIBRATED) == pytest.approx(SUSTAINED * 312e12)
    weak = replace(A100, watts=100.0)
    assert sustained_flops(weak, "bf16", CALIBRATED) == pytest.approx(
        100 * CALIBRATED.flops_per_joule / 1.0
    )
    assert sustained_flops(weak, "int8", CALIBRATED) == 2 * sustained_flops(
        weak, "bf16", CALIBRATED
    )
    assert sustained_flops(weak, "fp32", CALIBRATED) == pytest.approx(SUSTAINED * 19.5e12)
    older = replace(weak, relative_energy=2.0)
    assert (
        sustained_flops(older, "bf16", CALIBRATED) == sustained_flops(weak, "bf16", CALIBRATED) / 2
    )
    with pytest.raises(KeyError, match="T4 has no bf16"):
        sustained_flops(T4, "bf16", CALIBRATED)


def test_products_are_flops_over_the_rate() -> None:
    batch = ComputeBatch(32, 128, 128, 19.2)
    spent = predict_forward(BASE, batch, DeviceModel(A100, "bf16", TORCH, IDEAL))
    rate = sustained_flops(A100, "bf16", IDEAL)
    dense = 12 * 24 * 128 * 768**2 + 19.2 * 2 * 768 * (768 + 30522)
    assert spent.products == pytest.approx(32 * dense / rate)
    core = 12 * 4 * 128 * 128 * 768
    assert spent.attention == pytest.approx(32 * core / rate / IDEAL.attention)


def test_traffic_is_bytes_over_bandwidth() -> None:
    batch = ComputeBatch(32, 128, 128)
    spent = predict_forward(BASE, batch, DeviceModel(A100, "bf16", TORCH, IDEAL))
    moved = IDEAL.passes_eager * 32 * 128 * 768 * AUTOCAST_WIDTH
    assert spent.traffic == pytest.approx(12 * moved / (2039e9 * MEMORY_SHARE))
    unfused = predict_forward(
        BASE, batch, DeviceModel(A100, "bf16", STACKS["torch-unfused"], IDEAL)
    )
    scores = 12 * 32 * 128 * 128 * 12 * AUTOCAST_WIDTH
    assert unfused.traffic - spent.traffic == pytest.approx(12 * scores / (2039e9 * MEMORY_SHARE))


def test_what_is_not_computed_is_not_paid() -> None:
    padded = StepWork(BASE, 256, 32, 512.0, 512.0, 76.8)
    unpadded = replace(padded, tokens=256.0, attended_tokens=341.0, masked_tokens=38.4)
    assert of(unpadded).products == pytest.approx(of(padded).products / 2)
    assert of(unpadded).attention < of(padded).attention / 2
    whole = replace(CLASSES, cls_only=False)
    ratio = of(replace(WORK, shape=CLASSES)).products / of(replace(WORK, shape=whole)).products
    assert 11 / 12 < ratio < 0.96  # of the last layer only keys and values remain


def test_small_products_fill_the_device_in_part() -> None:
    def rate(sequences: int) -> float:
        batch = ComputeBatch(sequences, 128, 128)
        constants = replace(CALIBRATED, launch_seconds=0.0)
        spent = predict_forward(BASE, batch, DeviceModel(A100, "bf16", TORCH, constants))
        return sequences / spent.products

    assert rate(1) < 0.5 * rate(64)
    assert rate(64) < rate(256) < 1.1 * rate(64)


def test_recomputation_costs_a_forward() -> None:
    plain, full = of(WORK), of(WORK, recompute="full")
    once = (plain.products + plain.attention + plain.traffic) / 3
    assert full.recomputed == pytest.approx(once)
    selective = of(WORK, recompute="selective")
    assert 0 < selective.recomputed < full.recomputed


def test_the_optimizer_is_a_stream_through_memory() -> None:
    for name, bytes_a_weight in OPTIMIZER_BYTES.items():
        by_hand = BASE.num_parameters * bytes_a_weight / (2039e9 * MEMORY_SHARE)
        assert of(replace(WORK, optimizer=name)).optimizer == pytest.approx(by_hand)
    shared = of(WORK, dp_replicate=1, dp_shard=8)
    assert shared.optimizer == pytest.approx(of(WORK).optimizer / 8)


def test_copies_exchange_gradients_and_shards_half_as_much_again() -> None:
    gradients = all_reduce_seconds(4 * BASE.num_parameters, NODE, 8, IDEAL)
    assert of(WORK).exchanges == pytest.approx(gradients)
    halves = all_reduce_seconds(2 * BASE.num_parameters, NODE, 8, IDEAL)
    shards = of(WORK, dp_replicate=1, dp_shard=8).exchanges
    assert shards == pytest.approx(halves + gradients / 2)  # two gathers in bf16, a scatter in fp32


def test_a_pipeline_waits_while_it_fills() -> None:
    work = replace(WORK, micro_batch=4)
    topology = Topology(A100, 4, 1, None)
    piped = of(work, topology, dp_replicate=1, pp=4)
    computing = piped.products + piped.attention + piped.traffic + piped.launches
    assert piped.bubble == pytest.approx(computing * 3 / 64)
    apart = of(work, topology, dp_replicate=1, pp=4, stages_per_rank=2)
    assert apart.bubble == pytest.approx(piped.bubble / 2)


def test_tensor_parallel_divides_products_and_adds_sums() -> None:
    divided = of(WORK, dp_replicate=1, tp=8)
    whole = of(WORK, ALONE)
    assert divided.products == pytest.approx(whole.products / 8)
    micro = 2 * 32 * 128 * 768
    sums = 8 * 4 * 12 * all_reduce_seconds(micro, NODE, 8, IDEAL)
    assert divided.exchanges == pytest.approx(sums)


def test_the_slowest_of_many_is_waited_for() -> None:
    one, many = (
        predict_step(
            replace(WORK, sequences=32 * n),
            Layout(dp_replicate=n),
            Topology(A100, 8, n // 8, 200e9),
        )
        for n in (8, 1024)
    )
    assert many.waiting / (many.total - many.waiting) == pytest.approx(10 * CALIBRATED.waiting)
    assert one.waiting / (one.total - one.waiting) == pytest.approx(3 * CALIBRATED.waiting)
    assert many.busy < one.busy <= 1


def test_evaluation_is_a_forward_for_its_share() -> None:
    plain, watched = of(WORK), of(replace(WORK, eval_ratio=0.3))
    computing = plain.products + plain.attention + plain.traffic
    assert watched.evaluation == pytest.approx(0.3 * computing / 3)


def test_a_probed_speed_changes_what_is_computed_alone() -> None:
    slow = predict_step(WORK, Layout(dp_replicate=8), NODE, TORCH, replace(IDEAL, speed=0.5))
    assert slow.products == pytest.approx(2 * of(WORK).products)
    assert slow.exchanges == of(WORK).exchanges


@given(st.integers(1, 4096), st.floats(1, 512), st.sampled_from(["lamb", "adamw", "sgd"]))
def test_more_work_never_takes_less(sequences: int, tokens: float, optimizer: str) -> None:
    work = StepWork(BASE, sequences, 64, tokens, tokens, 1.0, optimizer=optimizer)
    spent = predict_step(work, Layout(dp_replicate=1), ALONE)
    assert all(getattr(spent, field.name) >= 0 for field in fields(spent))
    assert spent.total == pytest.approx(sum(getattr(spent, f.name) for f in fields(spent)))
    twice = predict_step(replace(work, sequences=2 * sequences), Layout(dp_replicate=1), ALONE)
    assert twice.total >= spent.total * (1 - 1e-12)
