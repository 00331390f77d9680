"""The cost model by hand: roofs, waves, traffic, layouts, optimizers; and money, energy, luck."""

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.costmodel.collectives import all_reduce
from cluster.costmodel.compute import AUTOCAST_WIDTH, Batch, Processor, forward, sustained
from cluster.costmodel.constants import CALIBRATED, MEMORY_SHARE, STACKS, SUSTAINED, TORCH
from cluster.costmodel.layout import Layout
from cluster.costmodel.model_shape import Shape
from cluster.costmodel.step_time import OPTIMIZER_BYTES, Step, Work, step
from cluster.hardware import catalog, energy
from cluster.hardware.price import HOURS_A_YEAR, owned_an_hour, price
from cluster.hardware.spot_interruptions import (
    RESTART_SECONDS,
    expected_seconds,
    mean_seconds_between,
)
from cluster.hardware.types import Machine, Ownership, Place
from cluster.planning.serving_cost import UTILISATION, answer_seconds, service

KNOWN = catalog.load()
A100, T4 = KNOWN.accelerator("A100-SXM4-80GB"), KNOWN.accelerator("T4")
BASE = Shape(768, 12, 12, 3072, 30522, 512, 2, 768, "masked-lm")
CLASSES = replace(BASE, head="classification", num_labels=2)
NODE = Place(A100, 8, 1, 200e9)
ALONE = Place(A100, 1, 1, None)
WORK = Work(BASE, 256, 32, 128.0, 128.0, 19.2)
IDEAL = replace(CALIBRATED, embeddings=0.0, wave=0.0, launch_seconds=0.0, waiting=0.0, overlap=0.0)


def of(work: Work, place: Place = NODE, **degrees: object) -> Step:
    degrees.setdefault("dp_replicate", place.devices)
    return step(work, Layout(**degrees), place, TORCH, IDEAL)  # type: ignore[arg-type]


def test_units_or_watts_whichever_allow_less() -> None:
    strong = replace(A100, watts=10_000.0)
    assert sustained(strong, "bf16", CALIBRATED) == pytest.approx(SUSTAINED * 312e12)
    weak = replace(A100, watts=100.0)
    assert sustained(weak, "bf16", CALIBRATED) == pytest.approx(
        100 * CALIBRATED.flops_per_joule / 1.0
    )
    assert sustained(weak, "int8", CALIBRATED) == 2 * sustained(weak, "bf16", CALIBRATED)
    assert sustained(weak, "fp32", CALIBRATED) == pytest.approx(SUSTAINED * 19.5e12)
    older = replace(weak, relative_energy=2.0)
    assert sustained(older, "bf16", CALIBRATED) == sustained(weak, "bf16", CALIBRATED) / 2
    with pytest.raises(KeyError, match="T4 has no bf16"):
        sustained(T4, "bf16", CALIBRATED)


def test_products_are_flops_over_the_rate() -> None:
    batch = Batch(32, 128, 128, 19.2)
    spent = forward(BASE, batch, Processor(A100, "bf16", TORCH, IDEAL))
    rate = sustained(A100, "bf16", IDEAL)
    dense = 12 * 24 * 128 * 768**2 + 19.2 * 2 * 768 * (768 + 30522)
    assert spent.products == pytest.approx(32 * dense / rate)
    core = 12 * 4 * 128 * 128 * 768
    assert spent.attention == pytest.approx(32 * core / rate / IDEAL.attention)


def test_traffic_is_bytes_over_bandwidth() -> None:
    batch = Batch(32, 128, 128)
    spent = forward(BASE, batch, Processor(A100, "bf16", TORCH, IDEAL))
    moved = IDEAL.passes_eager * 32 * 128 * 768 * AUTOCAST_WIDTH
    assert spent.traffic == pytest.approx(12 * moved / (2039e9 * MEMORY_SHARE))
    unfused = forward(BASE, batch, Processor(A100, "bf16", STACKS["torch-unfused"], IDEAL))
    scores = 12 * 32 * 128 * 128 * 12 * AUTOCAST_WIDTH
    assert unfused.traffic - spent.traffic == pytest.approx(12 * scores / (2039e9 * MEMORY_SHARE))


def test_what_is_not_computed_is_not_paid() -> None:
    padded = Work(BASE, 256, 32, 512.0, 512.0, 76.8)
    unpadded = replace(padded, tokens=256.0, attended=341.0, masked=38.4)
    assert of(unpadded).products == pytest.approx(of(padded).products / 2)
    assert of(unpadded).attention < of(padded).attention / 2
    whole = replace(CLASSES, cls_only=False)
    ratio = of(replace(WORK, shape=CLASSES)).products / of(replace(WORK, shape=whole)).products
    assert 11 / 12 < ratio < 0.96  # of the last layer only keys and values remain


def test_small_products_fill_the_device_in_part() -> None:
    def rate(sequences: int) -> float:
        batch = Batch(sequences, 128, 128)
        constants = replace(CALIBRATED, launch_seconds=0.0)
        spent = forward(BASE, batch, Processor(A100, "bf16", TORCH, constants))
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
    gradients = all_reduce(4 * BASE.num_parameters, NODE, 8, IDEAL)
    assert of(WORK).exchanges == pytest.approx(gradients)
    halves = all_reduce(2 * BASE.num_parameters, NODE, 8, IDEAL)
    shards = of(WORK, dp_replicate=1, dp_shard=8).exchanges
    assert shards == pytest.approx(halves + gradients / 2)  # two gathers in bf16, a scatter in fp32


def test_a_pipeline_waits_while_it_fills() -> None:
    work = replace(WORK, micro_batch=4)
    place = Place(A100, 4, 1, None)
    piped = of(work, place, dp_replicate=1, pp=4)
    computing = piped.products + piped.attention + piped.traffic + piped.launches
    assert piped.bubble == pytest.approx(computing * 3 / 64)
    apart = of(work, place, dp_replicate=1, pp=4, stages_per_rank=2)
    assert apart.bubble == pytest.approx(piped.bubble / 2)


def test_tensor_parallel_divides_products_and_adds_sums() -> None:
    divided = of(WORK, dp_replicate=1, tp=8)
    whole = of(WORK, ALONE)
    assert divided.products == pytest.approx(whole.products / 8)
    micro = 2 * 32 * 128 * 768
    sums = 8 * 4 * 12 * all_reduce(micro, NODE, 8, IDEAL)
    assert divided.exchanges == pytest.approx(sums)


def test_the_slowest_of_many_is_waited_for() -> None:
    one, many = (
        step(replace(WORK, sequences=32 * n), Layout(dp_replicate=n), Place(A100, 8, n // 8, 200e9))
        for n in (8, 1024)
    )
    assert many.waiting / (many.total - many.waiting) == pytest.approx(10 * CALIBRATED.waiting)
    assert one.waiting / (one.total - one.waiting) == pytest.approx(3 * CALIBRATED.waiting)
    assert many.busy < one.busy <= 1


def test_evaluation_is_a_forward_for_its_share() -> None:
    plain, watched = of(WORK), of(replace(WORK, evaluated=0.3))
    computing = plain.products + plain.attention + plain.traffic
    assert watched.evaluation == pytest.approx(0.3 * computing / 3)


def test_a_probed_speed_changes_what_is_computed_alone() -> None:
    slow = step(WORK, Layout(dp_replicate=8), NODE, TORCH, replace(IDEAL, speed=0.5))
    assert slow.products == pytest.approx(2 * of(WORK).products)
    assert slow.exchanges == of(WORK).exchanges


@given(st.integers(1, 4096), st.floats(1, 512), st.sampled_from(["lamb", "adamw", "sgd"]))
def test_more_work_never_takes_less(sequences: int, tokens: float, optimizer: str) -> None:
    work = Work(BASE, sequences, 64, tokens, tokens, 1.0, optimizer=optimizer)
    spent = step(work, Layout(dp_replicate=1), ALONE)
    assert all(getattr(spent, field.name) >= 0 for field in fields(spent))
    assert spent.total == pytest.approx(sum(getattr(spent, f.name) for f in fields(spent)))
    twice = step(replace(work, sequences=2 * sequences), Layout(dp_replicate=1), ALONE)
    assert twice.total >= spent.total * (1 - 1e-12)


def test_power_by_what_is_busy() -> None:
    node = Machine("n", A100, 8, None, on_demand=32.0, spot=10.0)
    assert energy.node_watts(node, 1.0) == pytest.approx(8 * 400 * energy.BUSY)
    assert energy.node_watts(node, 0.0) == pytest.approx(8 * 400 * energy.IDLE)
    assert energy.node_watts(replace(node, accelerator=replace(A100, watts=None)), 1.0) is None
    assert energy.kilowatt_hours(1000.0, 7200.0, 1.5) == pytest.approx(3.0)
    assert energy.kilowatt_hours(None, 1.0) is None
    assert energy.kilograms_of_co2(10.0, "us-east-1") == pytest.approx(3.73)


def test_prices_by_hand() -> None:
    rented = Machine("n", A100, 8, None, on_demand=32.0, spot=10.0)
    paid = price(rented, 2, 5400.0, 3000.0)
    assert paid.dollars == pytest.approx(96.0)
    assert paid.spot is not None and paid.spot_seconds is not None
    assert paid.spot == pytest.approx(20 * paid.spot_seconds / 3600)
    own = Ownership(40_000, 4, 0.5, 0.30, 1.2)
    box = replace(rented, ownership=own)
    an_hour = 40_000 / (4 * HOURS_A_YEAR * 0.5) + 3.0 * 1.2 * 0.30
    assert owned_an_hour(box, 3000.0) == pytest.approx(an_hour)
    assert price(box, 2, 5400.0, 3000.0).dollars == pytest.approx(3 * an_hour)
    assert price(box, 2, 5400.0, None).dollars is None
    assert price(replace(rented, on_demand=None, spot=None), 1, 1.0, None).dollars is None


def test_interruptions_cost_little_on_few_machines_and_much_on_many() -> None:
    day = 86400.0
    assert expected_seconds(60.0, 1) < 75
    few, many = expected_seconds(day, 1), expected_seconds(day, 512)
    assert day < few < 1.01 * day
    assert 1.03 * day < many < 1.2 * day
    # First order: checkpoints, half an interval lost, and a restart, for each interruption.
    mean = mean_seconds_between(64)
    interval = math.sqrt(2 * 10 * mean)
    first_order = day * (1 + 10 / interval + (RESTART_SECONDS + interval / 2) / mean)
    assert expected_seconds(day, 64) == pytest.approx(first_order, rel=0.002)


def test_serving_takes_the_largest_batch_within_the_target() -> None:
    g6 = KNOWN.machine("g6.12xlarge")
    found = service(CLASSES, 128, g6, 0.05, 5000.0)
    assert found is not None
    assert found.p95_seconds <= 0.05
    assert 2 * answer_seconds(CLASSES, 128, 2 * found.batch, g6.accelerator) > 0.05
    assert found.replicas == math.ceil(5000 / found.texts_per_second)
    assert found.machines == math.ceil(found.replicas / 4)
    seconds = answer_seconds(CLASSES, 128, found.batch, g6.accelerator)
    assert found.texts_per_second == pytest.approx(UTILISATION * found.batch / seconds)
    assert found.dollars_per_million == pytest.approx(found.machines * 4.6016 / (5000 * 3600) * 1e6)
    assert service(CLASSES, 128, g6, 1e-5, 1.0) is None
