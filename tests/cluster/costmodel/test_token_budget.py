"""The token budget of a GPU follows from its memory, by the memory model."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.costmodel.job import TrainingJob
from cluster.costmodel.layout import Layout
from cluster.costmodel.layout_search import GIB, choose_layout
from cluster.costmodel.memory import TrainingSetup, peak_memory
from cluster.costmodel.model_shape import ModelShape
from cluster.costmodel.token_budget import BUDGETS, USED_SHARE, fitting_token_budget
from cluster.hardware.catalog import load_catalog
from cluster.hardware.types import Topology
from cluster.spec import ClusterMetadata, ClusterSpec
from trainers.config import recipe as recipes
from trainers.planning.layout import resolve_layout
from trainers.planning.workload import load_workload

BASE = ModelShape(768, 12, 12, 3072, 30522, 512, 2, 768, "classification", 2)
LARGE = ModelShape(1024, 24, 16, 4096, 30522, 512, 2, 1024, "masked-lm")
CARD = load_catalog().get_accelerator("A100-SXM4-80GB")
ONE = Layout(dp_replicate=1)


def job(gib: float, shape: ModelShape = BASE, **changes: Any) -> TrainingJob:
    devices = Topology(CARD, 1, 1, None)
    whole = TrainingJob(shape, devices, 1, gib * GIB, 4096, 512, 32768, "bf16")
    return replace(whole, may_raise_budget=True, **changes)


def peak(budget: int, shape: ModelShape = BASE) -> float:
    return peak_memory(shape, ONE, TrainingSetup(budget // 512, 512, 8, "bf16"))


@pytest.mark.parametrize(
    ("gib", "budget"), [(8, 12288), (16, 32768), (24, 49152), (80, 131072), (141, 131072)]
)
def test_bert_base_fills_a_card_up_to_what_a_gpu_needs(gib: float, budget: int) -> None:
    assert fitting_token_budget(job(gib), ONE) == budget
    assert peak(budget) <= USED_SHARE * gib * GIB
    larger = [each for each in BUDGETS if each > budget]
    assert all(peak(each) > USED_SHARE * gib * GIB for each in larger)


def test_the_budget_is_what_the_states_leave_over_the_bytes_of_a_token() -> None:
    states = 16 * BASE.num_parameters + 2 * 12 * BASE.layer_matrices  # fp32, and bf16 casts
    a_token = (peak(65536) - peak(32768)) / 32768
    assert states < peak(2048) < states + 3000 * a_token
    for gib in (8, 16, 24, 48):
        room = (USED_SHARE * gib * GIB - states) / a_token
        found = fitting_token_budget(job(gib), ONE)
        assert found is not None and found <= room < 1.6 * found


def test_a_small_global_batch_leaves_room_for_the_evaluation() -> None:
    assert fitting_token_budget(job(16, global_batch_size=4), ONE) == 32768
    choice = choose_layout(job(16, global_batch_size=4))
    assert choice.token_budget == 32768 and choice.chosen.memory < 4 * GIB


def test_without_memory_or_room_there_is_none() -> None:
    assert fitting_token_budget(replace(job(1), device_memory=None), ONE) is None
    assert fitting_token_budget(job(4, LARGE), ONE) is None
    assert fitting_token_budget(job(80, max_length=200_000), ONE) in (None, 200_000)
    long = job(24, max_length=8192)
    assert fitting_token_budget(long, ONE) in BUDGETS[4:]


def test_a_layout_that_keeps_less_has_a_larger_budget() -> None:
    whole, recomputed = (
        fitting_token_budget(job(24, LARGE), ONE.model_copy(update={"recompute": each}))
        for each in ("none", "full")
    )
    assert whole is not None and recomputed is not None and recomputed > 2 * whole


def cluster(**metadata: Any) -> ClusterSpec:
    return ClusterSpec("here", "local", 1, ClusterMetadata(accelerator="cuda", **metadata))


@pytest.mark.parametrize("layout", ["auto", {}])
@pytest.mark.parametrize(
    ("metadata", "budget"),
    [
        ({"device_memory_gib": 8}, 12288),
        ({"device_memory_gib": 24}, 49152),
        ({"accelerator_name": "H200-SXM-141GB"}, 131072),
        ({}, None),  # its memory is not known: the device's default
    ],
)
def test_a_run_takes_it_where_the_memory_is_known(
    layout: Any, metadata: dict[str, Any], budget: int | None
) -> None:
    settings = ["precision=bf16", "batch.global_size=4096"]
    recipe = recipes.load_recipe("imdb", settings).model_copy()
    recipe = recipe.model_copy(update={"layout": layout if layout == "auto" else Layout()})
    found = resolve_layout(recipe, BASE, cluster(**metadata))
    assert (found.token_budget, found.tokens_at_once) == (budget, budget or 32768)
    batch = recipe.batch.model_copy(update={"token_budget": 4096})
    fixed = resolve_layout(recipe.model_copy(update={"batch": batch}), BASE, cluster(**metadata))
    assert fixed.tokens_at_once == 4096


def test_a_pipeline_that_the_recipe_asks_for_keeps_its_micro_batches() -> None:
    recipe = recipes.load_recipe("imdb", ["precision=bf16", "batch.global_size=4096"])
    piped = recipe.model_copy(update={"layout": Layout(pp=2)})
    for gib, budget in ((8, 12288), (80, 32768)):
        found = resolve_layout(piped, BASE, cluster(devices_per_node=2, device_memory_gib=gib))
        assert found.tokens_at_once == budget


def test_a_plan_reckons_with_the_same_budget_and_other_devices_keep_theirs() -> None:
    work = load_workload("imdb", ["precision=bf16"], rows=1000)
    planned = work.job_on(Topology(CARD, 1, 1, None))
    assert planned.may_raise_budget
    assert not replace(work, token_budget=4096).job_on(Topology(CARD, 1, 1, None)).may_raise_budget
    chip = load_catalog().get_accelerator("Trainium2").core
    assert not work.job_on(Topology(chip, 1, 1, None)).may_raise_budget
