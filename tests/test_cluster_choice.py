"""The layout nobody had to choose: the cheapest that fits, and the way out when none does."""

from dataclasses import replace

import pytest

from cluster.choice import FREE, GIB, Choice, choose, layouts
from cluster.job import Job
from cluster.layout import Layout, LayoutError, check
from cluster.memory import peak
from cluster.overhead import cost
from cluster.workload import Shape

BASE = Shape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)
LARGE = Shape(1024, 24, 16, 4096, 30522, 512, 2, 1024, "masked-lm")
HUGE = Shape(4096, 48, 32, 16384, 30522, 512, 2, 4096, "masked-lm")
SMALL = Job(BASE, 8, 8, 80 * GIB, 256, 128, 32768, "bf16", overhead_tokens=2048)
BIG = replace(SMALL, shape=LARGE, num_devices=16, global_batch_size=4096, max_length=512)


def room(job: Job, gib: float) -> Job:
    return replace(job, device_memory=gib * GIB)


def test_what_fits_is_only_replicated() -> None:
    choice = choose(SMALL)
    assert choice.layout == Layout(dp_replicate=8)
    assert choice.token_budget == 32768
    assert "the cheapest layout, dp_replicate 8, needs" in choice.reason
    assert choice.considered[0] == choice.chosen


@pytest.mark.parametrize(
    ("gib", "divided", "sharded", "recompute"),
    [(80, False, False, "none"), (37, False, False, "selective"), (26, False, True, "selective")],
)
def test_less_memory_costs_more(gib: float, divided: bool, sharded: bool, recompute: str) -> None:
    layout = choose(room(BIG, gib)).layout
    assert (layout.tp > 1 or layout.pp > 1) == divided
    assert (layout.dp_shard > 1) == sharded
    assert layout.recompute == recompute


def test_cost_only_grows_as_memory_shrinks() -> None:
    choices = [choose(room(BIG, gib)) for gib in (80, 40, 20, 10)]
    costs = [choice.chosen.cost for choice in choices]
    assert costs == sorted(costs)


def test_shards_stay_inside_a_node_where_they_can() -> None:
    layout = choose(room(BIG, 26)).layout
    assert 1 < layout.dp_shard <= 8
    assert layout.dp == 16


def test_layers_are_divided_only_where_nothing_else_fits() -> None:
    tight = replace(BIG, shape=HUGE, global_batch_size=16, token_budget=512, device_memory=24 * GIB)
    whole = [c for c in choose(tight).considered if c.layout.tp == c.layout.pp == 1]
    assert choose(tight).chosen in whole
    least = min(candidate.memory for candidate in whole)
    layout = choose(replace(tight, device_memory=1.05 * least)).layout
    assert layout.tp > 1 or layout.pp > 1
    undivided = choose(replace(tight, max_tp=1)).considered
    assert {candidate.layout.tp for candidate in undivided} == {1}
    assert max(candidate.layout.pp for candidate in undivided) == 16


@pytest.mark.parametrize("gib", [80, 16, 8, 4])
def test_the_chosen_fits_and_so_says_its_own_arithmetic(gib: float) -> None:
    job = room(BIG, gib)
    choice = choose(job)
    needed = peak(job.shape, choice.layout, job.regime(choice.layout, choice.token_budget))
    assert needed == choice.chosen.memory <= gib * GIB * (1 - FREE)
    check(choice.layout, job.shape, 16, 8, 4096)
    assert choice.layout.world_size == 16


def test_a_smaller_token_budget_may_make_it_fit_unless_the_recipe_fixed_it() -> None:
    job = replace(SMALL, num_devices=1, devices_per_node=1, device_memory=4 * GIB)
    choice = choose(job)
    assert choice.token_budget < job.token_budget
    assert choice.token_budget >= job.max_length
    assert f"micro-batches of {choice.token_budget:,} tokens" in choice.reason
    with pytest.raises(LayoutError, match=r"lower batch.token_budget \(32,768\)"):
        choose(replace(job, may_lower_budget=False))


def test_nothing_fits_and_the_way_out_is_said() -> None:
    job = replace(BIG, shape=HUGE, num_devices=1, devices_per_node=1)
    with pytest.raises(LayoutError) as refused:
        choose(job)
    said = str(refused.value)
    assert "no layout of 1 devices with 80.00 GiB each fits; the smallest need is" in said
    assert "recompute full with micro-batches of 512 tokens" in said
    assert "give devices of" in said and "use more devices" in said
    need = float(said.split("give devices of ")[1].split(" GiB")[0])
    assert choose(room(job, need + 0.01)).layout.recompute == "full"


def test_too_few_samples_for_the_devices_is_said() -> None:
    with pytest.raises(LayoutError, match=r"batch.global_size is 1: .*raise batch.global_size"):
        choose(replace(SMALL, num_devices=13, devices_per_node=13, global_batch_size=1))


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (replace(SMALL, device_memory=None), "the memory of a device is unknown"),
        (replace(SMALL, shape=Shape.linear(1, 1)), "a linear model is only replicated"),
    ],
)
def test_what_cannot_be_weighed_is_replicated(job: Job, said: str) -> None:
    choice = choose(job)
    assert isinstance(choice, Choice)
    assert choice.layout == Layout(dp_replicate=8)
    assert said in choice.reason


def test_every_layout_of_the_grid_can_run() -> None:
    found = list(layouts(BIG))
    assert len(found) == len(set(map(str, found))) > 100
    for layout in found:
        check(layout, LARGE, 16, 8, 4096)


def test_costs_by_hand() -> None:
    alone = replace(SMALL, num_devices=1)
    assert cost(alone, Layout(dp_replicate=1), 32768) == 0
    assert cost(alone, Layout(dp_replicate=1), 16384) == pytest.approx(2048 / 32768)
    full = Layout(dp_replicate=1, recompute="full")
    forward = BASE.layers_flops(128) / BASE.training_flops(128)
    assert cost(alone, full, 32768) == pytest.approx(forward)
    # 2 n (7/8) bytes of fp32 gradients but for the word table, half hidden, 800 FLOPs a byte
    moved = 0.5 * 2 * 4 * (BASE.num_parameters - 30522 * 768) * 7 / 8 * 800
    by_hand = moved / (32 * BASE.training_flops(128))
    assert cost(SMALL, Layout(dp_replicate=8), 32768) == pytest.approx(by_hand)


def test_a_pipeline_waits_while_it_fills() -> None:
    few = replace(BIG, num_devices=4, devices_per_node=4, global_batch_size=64)
    piped = Layout(dp_replicate=1, pp=4)
    assert cost(few, piped, 32768) > 3  # one micro-batch: three of four ranks wait
    assert cost(few, piped, 512) < 1 + 2048 / 512
